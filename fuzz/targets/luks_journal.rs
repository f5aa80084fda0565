//! Any bytes as the log of an ext4 file system that was not closed; asserted is what stands beside its reader.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| luks::fuzz_journal(data));
