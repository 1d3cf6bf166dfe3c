#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wice_fuzz::feed("uapi", data));
