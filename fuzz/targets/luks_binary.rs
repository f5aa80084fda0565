//! Any bytes as a LUKS2 binary header; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| luks::fuzz_binary(data));
