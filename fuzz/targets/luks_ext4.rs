//! Any bytes as an ext4 file system, read and written; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| luks::fuzz_ext4(data));
