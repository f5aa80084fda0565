//! Any bytes as a platform's certificate and a revocation list; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| protocol::fuzz::certificates(data));
