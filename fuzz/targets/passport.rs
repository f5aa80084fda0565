//! Any bytes as a bundle, or the statement in one; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hfl::passport::fuzz::passport(data));
