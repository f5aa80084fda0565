//! Any bytes as a superblock and a journal of dm-integrity; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| luks::fuzz_integrity(data));
