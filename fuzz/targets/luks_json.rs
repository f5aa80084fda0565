//! Any bytes as LUKS2 metadata's JSON; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| luks::fuzz_json(data));
