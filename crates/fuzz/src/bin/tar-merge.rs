//! See [`smartvm_fuzz::tar_merge`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| smartvm_fuzz::tar_merge(bytes));
