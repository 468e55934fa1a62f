//! The program that is PID 1 in a guest.

fn main() {}
