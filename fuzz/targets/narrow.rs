//! Any bytes as values in narrow number formats; what is asserted stands beside the code that reads them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kernels::narrow::fuzz(data));
