//! The server's part of receipts: one a round, told with the parameters that came of it.

use super::ParameterServer;
use crate::job::receipt::{Hash, Receipt, Share};

impl ParameterServer {
    /// The receipt of the round that has just been added to the state, with what each worker has in it.
    pub(super) fn make_receipt(&mut self, count: u64, shares: Vec<Option<Share>>) {
        let parameters = self.parameters();
        let (before, job, step) = (self.state.receipt.as_ref(), self.job.digest(), self.state.step);
        let receipt = Receipt::next(before, job, step, count, parameters, shares);
        self.state.receipt = Some(receipt);
    }

    /// A training of which a checkpoint without a receipt is left begins with one that vouches for its parameters and
    /// for nothing of before.
    pub(super) fn begin_receipts(&mut self) {
        if self.state.step > 0 && self.state.receipt.is_none() {
            self.make_receipt(self.state.step, vec![None; usize::from(self.job.workers)]);
        }
    }

    /// What was sent early is hashed already.
    fn parameters(&mut self) -> Hash {
        self.hashes.complete(&self.cells, &self.state.params, &self.pool);
        let root = self.hashes.root();
        self.hashes.clear();
        root.expect("a hash of each cell")
    }
}
