//! `Exchange`: a worker's connection while it computes: parameters that still come in, gradients that are final.

use std::time::{Duration, Instant};

use protocol::{LinkId, Net};

use super::stopwatch::{Phase, Stopwatch};
use crate::termination;
use crate::training::contribution::{Contribution, Tail};
use crate::training::steps::Watch;
use crate::training::worker::{Work, Worker};

/// Looks at a connection while a pass waits: of some 400 KiB each, so that together they empty a socket's buffer.
const LOOKS_MAX: usize = 64;

/// What a step has to do with the server while it is computed.
pub(super) struct Exchange<'a> {
    pub(super) net: &'a mut Net,
    pub(super) id: LinkId,
    pub(super) worker: &'a mut Worker,
    pub(super) stopwatch: &'a mut Stopwatch,
    /// The parameters of the step still come in, or are not known yet to be those of their receipt.
    pub(super) is_arriving: bool,
    /// Where those of the next step come in.
    pub(super) next: &'a mut [f32],
    /// What the server asked for: it waits until the step is computed.
    pub(super) work: Work,
    /// When the backward pass of which step began.
    pub(super) backward: Option<(u64, Instant)>,
}

impl Exchange<'_> {
    /// Takes in what has come, up to what has to be done next.
    fn take_in(net: &mut Net, id: LinkId, worker: &mut Worker, into: &mut [f32]) -> Work {
        let mut work = Work::Wait;
        for looks in 1..=LOOKS_MAX {
            net.drive(id, |session| {
                if work == Work::Wait {
                    work = worker.pump(session, into)?;
                }
                Ok(())
            });
            // What was read is worked through before anything else may wait for more.
            if work != Work::Wait || looks == LOOKS_MAX || !net.has_more(id) {
                break;
            }
            // What fails here fails again where it is looked at next.
            let Ok(()) = net.poll(Some(Duration::ZERO), &[0; 32]) else { break };
        }
        work
    }
}

impl Watch for Exchange<'_> {
    /// Waits for what is needed alone, but takes in all that is there.
    fn await_end(&mut self, params: &mut [f32], end: usize) -> bool {
        let (net, id) = (&mut *self.net, self.id);
        let mut timeout = Some(Duration::ZERO);
        while self.is_arriving {
            let Ok(()) = net.poll(timeout, &[0; 32]) else { return false };
            self.work = Self::take_in(net, id, self.worker, params);
            if matches!(self.work, Work::Verified { .. }) {
                (self.work, self.is_arriving) = (Work::Wait, false);
                break;
            }
            let is_over = self.work != Work::Wait || net.is_over(id) || termination::requested();
            match self.worker.has(end) {
                Some(has) if !is_over => {
                    if has && end < params.len() {
                        break;
                    }
                }
                _ => return false,
            }
            self.stopwatch.enter(Phase::Pull, Instant::now());
            timeout = None;
        }
        if timeout.is_none() {
            self.stopwatch.enter(Phase::Forward, Instant::now());
        }
        true
    }

    fn part(&mut self, step: u64) {
        if self.backward.is_none_or(|(of, _)| of != step) {
            self.backward = Some((step, Instant::now()));
        }
    }

    fn send(&mut self, contribution: &mut Contribution, gradients: Tail) {
        let (net, id, worker) = (&mut *self.net, self.id, &mut *self.worker);
        // Of who was left out meanwhile nobody waits for anything.
        if matches!(self.work, Work::Skip { .. }) {
            return contribution.hold();
        }
        net.drive(id, |session| {
            worker.sent(contribution.send(session, gradients)?);
            Ok(())
        });
        if self.work != Work::Wait {
            return;
        }
        if net.poll(Some(Duration::ZERO), &[0; 32]).is_ok() {
            self.work = Self::take_in(net, id, self.worker, self.next);
        }
    }

    fn is_stopped(&self) -> bool {
        termination::requested()
    }
}
