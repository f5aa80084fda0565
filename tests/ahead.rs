//! Support: a simulated worker's forward pass, which begins before all of its parameters are there.

use hfl::training::worker::{Work, Worker};

/// Values that a layer needs: the first so many.
const ENDS: [usize; 3] = [60, 150, 180];

/// A forward pass on its way.
#[derive(Default)]
pub(crate) struct Ahead {
    /// The step, and the values that were read for it, each when its layer's were there.
    pass: Option<(u64, Vec<f32>)>,
    /// Passes that came to their end, and those that were given up.
    pub(crate) counts: [u32; 2],
}

impl Ahead {
    /// Goes on with the pass, or begins one, when there is nothing else to do: `trained` of the values are trained.
    pub(crate) fn go_on(&mut self, worker: &mut Worker, params: &[f32], trained: usize) {
        if self.pass.is_some() && worker.has(0).is_none() {
            self.give_up(worker);
        }
        if self.pass.is_none() {
            let Some((step, _)) = worker.begin() else { return };
            self.pass = Some((step, Vec::new()));
        }
        let Some((_, read)) = &mut self.pass else { return };
        for end in ENDS {
            if read.len() < end && worker.has(end) == Some(true) {
                read.extend_from_slice(&params[read.len()..end]);
            }
        }
        if read.len() == trained {
            read.extend_from_slice(&params[trained..]);
        }
    }

    /// What is to be done, once it is known whether a pass came to its end.
    pub(crate) fn settle(&mut self, work: Work, worker: &mut Worker, params: &[f32]) -> Work {
        let Work::Verified { step } = work else {
            if work != Work::Wait {
                self.give_up(worker);
            }
            return work;
        };
        let (begun, read) = self.pass.take().expect("what was begun");
        self.counts[0] += 1;
        assert_eq!(begun, step);
        assert_eq!(read, params[..read.len()], "what was read early is what was verified");
        Work::Compute { step, steps: 0 }
    }

    /// The connection is over, or there is something else to do.
    pub(crate) fn give_up(&mut self, worker: &mut Worker) {
        worker.abandon();
        self.counts[1] += u32::from(self.pass.take().is_some());
    }
}
