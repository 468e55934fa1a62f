//! See [`smartvm_fuzz::bzimage`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| smartvm_fuzz::bzimage(bytes));
