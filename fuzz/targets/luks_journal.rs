//! Any bytes as the log of an ext4 file system that was not closed; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| luks::fuzz_journal(data));
