//! Any bytes as a CIFAR-10 file; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hfl::data::cifar::fuzz(data));
