//! Any bytes as a whole LUKS2 header under both policies; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| luks::fuzz_header(data));
