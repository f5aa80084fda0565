//! Any bytes as heads of receipts; what is asserted stands beside the code that reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hfl::training::ledger::fuzz(data));
