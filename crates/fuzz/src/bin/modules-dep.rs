//! See [`smartvm_fuzz::modules_dep`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| smartvm_fuzz::modules_dep(bytes));
