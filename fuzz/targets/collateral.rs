//! Any bytes as a bundle of collateral and the documents in it; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| protocol::fuzz::collateral(data));
