//! Several processes on one store, some of them killed at any moment: the store stays whole, and the next try works.
//!
//! * `operation`: what is killed; **a new kind of work is one value in its table, and one test in `rounds`**
//! * `kernel`, `image`: an import of a kernel, a pull and an import of an image, which are some of them
//! * `scene`: a store of its own, and what the work needs beside it
//! * `child`: this program once more, as another process
//! * `random`: moments from a seed (`SMARTVM_TEST_SEED`)
//! * `rounds`: kills, and what must hold after each
//! * `races`: processes that get in each other's way

#[cfg(test)]
mod child;
#[cfg(test)]
mod image;
#[cfg(test)]
mod kernel;
#[cfg(test)]
mod operation;
#[cfg(test)]
mod races;
#[cfg(test)]
mod rounds;
#[cfg(test)]
mod scene;
