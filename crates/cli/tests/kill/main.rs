//! Owners that are killed at any moment of their lives: nothing of theirs stays, and nobody else is harmed.
//!
//! A program of its own, and one test at a time in it: it is the subreaper of all it starts, so that whatever outlives
//! its owner becomes a child of this process and cannot hide.
//!
//! * `arena`: the directories, the configs, the command; what is there, and who lives
//! * `random`: moments from a seed (`SMARTVM_TEST_SEED`)
//! * `victim`: one owner, and the moment at which it is killed
//! * `rounds`: kills and what must hold after the next clean-up
//! * `races`: many starts and clean-ups at once
//! * `hostile`: leftovers that were made to mislead the clean-up

#[cfg(test)]
mod arena;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod races;
#[cfg(test)]
mod rounds;
#[cfg(test)]
#[path = "../cli/scene.rs"]
#[expect(dead_code, reason = "the other test program uses the rest")]
mod scene;
#[cfg(test)]
mod victim;
