//! See [`smartvm_fuzz::manifest`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| smartvm_fuzz::manifest(bytes));
