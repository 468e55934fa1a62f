//! The command `smartvm` as a user sees it: the built binary, real Firecracker, tiny guests.

#[cfg(test)]
mod broken_configs;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod goods;
#[cfg(test)]
mod images;
#[cfg(test)]
mod kernels;
#[cfg(test)]
mod ownership;
#[cfg(test)]
mod pipes;
#[cfg(test)]
mod releases;
#[cfg(test)]
mod run_image;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod server;
#[cfg(test)]
mod setup;
#[cfg(test)]
mod store;
#[cfg(test)]
mod terminal;
