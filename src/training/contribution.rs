//! `Contribution`: what a worker sends in a round, and what it keeps of that until the next.
//!
//! With error feedback, what rounding takes off a contribution is added to the one after it. That rest is kept in
//! memory alone: a worker that is started again, or is asked for a round that does not follow its last one, begins at
//! zero and says so (`fresh`). A fresh contribution depends on nothing but parameters and step.

use protocol::{CloseReason, Message, Session};

use crate::job::receipt::Share;
use crate::model::gradients::Bucket;
use crate::training::cell_hashes::CellHashes;
use crate::training::cells::Cells;

/// A worker's contribution to the round at hand, or to its last one.
pub struct Contribution {
    cells: Cells,
    head: Option<Head>,
    /// With error feedback: trained values as they were to be sent, then what rounding left of them.
    carry: Option<Vec<f32>>,
    /// Bytes of a cell.
    scratch: Vec<u8>,
    /// Of the cells that were sent.
    hashes: CellHashes,
    /// Cells from this one on are as they are to be sent, and those from that one on were queued.
    taken: usize,
    sent: usize,
    /// Whether its head was queued. While none of it is to be sent, as nobody listens.
    is_announced: bool,
    is_held: bool,
}

/// What is said of a contribution.
#[derive(Clone, Copy, Debug)]
struct Head {
    step: u64,
    /// The step that the next round begins with.
    next: u64,
    fresh: bool,
    /// Samples and their mean loss, once they are known.
    of: Option<(u32, f32)>,
    is_whole: bool,
}

impl Contribution {
    /// None yet; values will travel in these cells.
    pub fn new(cells: Cells, trained: usize) -> Self {
        let carry = cells.need_feedback().then(|| vec![0.0; trained]);
        let hashes = CellHashes::new(cells.count());
        Self {
            cells,
            head: None,
            carry,
            scratch: Vec::new(),
            hashes,
            taken: 0,
            sent: 0,
            is_announced: false,
            is_held: false,
        }
    }

    /// Whether this is the contribution to the round of `step`, and complete: it can be sent again.
    pub fn is_whole(&self, step: u64) -> bool {
        self.head.is_some_and(|head| head.step == step && head.is_whole)
    }

    /// Forgets it: what was carried over does not fit what comes.
    pub fn forget(&mut self) {
        self.head = None;
    }

    /// Forgets it if what was carried over is not of what the last round had of ours.
    pub fn confirm(&mut self, contributed: Option<(u64, Share)>) {
        if self.carry.is_some() && self.share() != contributed {
            self.forget();
        }
    }

    /// Begins the contribution to the round of `step`, which has `count` steps.
    pub fn begin(&mut self, step: u64, count: u64) {
        let follows = self.head.is_some_and(|head| head.next == step && head.is_whole);
        if let Some(carry) = &mut self.carry {
            match follows {
                true => self.cells.subtract_sent(carry),
                false => carry.fill(0.0),
            }
        }
        // Where nothing is carried over, all are alike.
        let fresh = self.carry.is_some() && !follows;
        self.head = Some(Head { step, next: step + count, fresh, of: None, is_whole: false });
        self.hashes.clear();
        self.taken = self.cells.count();
        self.send_again();
    }

    /// Sends all of it from its end on, as far as it is complete.
    pub fn send_again(&mut self) {
        self.sent = self.cells.count();
        (self.is_announced, self.is_held) = (false, false);
    }

    /// Sends nothing more of it, as the connection is over, unless it is asked for again.
    pub fn hold(&mut self) {
        self.is_held = true;
    }

    /// Whether some of it is still to be sent, of what is complete or not.
    pub fn is_left(&self) -> bool {
        self.head.is_some() && !self.is_held && self.sent > 0
    }

    /// The step that its round began with, and what a receipt has to say of it; once all of it was sent.
    pub fn share(&self) -> Option<(u64, Share)> {
        let Head { step, fresh, of, .. } = self.head?;
        Some((step, Share { samples: of?.0, fresh, hash: self.hashes.root()? }))
    }

    /// Takes the cells that are complete now that this part is. To be called once for each part, from the end of the
    /// buffer to its start, whether or not there is a connection to send them over.
    pub fn take(&mut self, samples: u32, Bucket { loss, range: done, gradients, .. }: &Bucket) {
        let head = self.head.as_mut().expect("begun");
        head.of.get_or_insert((samples, *loss));
        while let Some(index) = self.taken.checked_sub(1) {
            let range = self.cells.range(index).expect("a cell");
            if range.start < done.start {
                break;
            }
            if let Some(carry) = &mut self.carry {
                let trained = range.start..range.end.min(carry.len()).max(range.start);
                let carry = carry.get_mut(trained).unwrap_or_default();
                for (carry, gradient) in
                    carry.iter_mut().zip(&gradients[range.start - done.start..])
                {
                    *carry += gradient;
                }
            }
            self.taken = index;
        }
        head.is_whole = self.taken == 0;
    }

    /// Queues the next cell that is complete, once what was queued before is out: no more of it lies between the
    /// gradients and the socket. To be called again when it is. What a receipt has to say of all of it, when that was
    /// the last.
    ///
    /// # Errors
    /// When the session is over.
    pub fn send(
        &mut self,
        session: &mut Session,
        gradients: Tail,
    ) -> Result<Option<(u64, Share)>, CloseReason> {
        let Some(Head { step, fresh, of: Some((samples, loss)), .. }) = self.head else {
            return Ok(None);
        };
        if !self.is_left() || self.sent == self.taken || session.wants_output() {
            return Ok(None);
        }
        if !std::mem::replace(&mut self.is_announced, true) {
            session.send(&Message::Gradients { step, samples, loss, fresh })?;
        }
        self.sent -= 1;
        let (offset, bytes) = self.cell(self.sent, gradients);
        session.send_chunk(step, offset, bytes)?;
        Ok(if self.sent == 0 { self.share() } else { None })
    }

    /// A cell's place in bytes of the flat buffer, and its bytes.
    pub fn cell<'a>(
        &'a mut self,
        index: usize,
        Tail { start, gradients }: Tail<'a>,
    ) -> (u64, &'a [u8]) {
        let Self { cells, carry, scratch, hashes, .. } = self;
        let range = cells.range(index).expect("a cell");
        let values = &gradients[range.start - start..range.end - start];
        let mut mixed = Vec::new();
        let encoded = match carry.as_deref() {
            None => cells.encode(&range, values, scratch),
            Some(carry) if range.end <= carry.len() => {
                cells.encode(&range, &carry[range.clone()], scratch)
            }
            Some(carry) => {
                // The cell at the end of the trained values, and those of statistics alone.
                let trained = carry.get(range.start..).unwrap_or_default();
                mixed.extend_from_slice(trained);
                mixed.extend_from_slice(&values[trained.len()..]);
                cells.encode_narrow(&range, &mixed, scratch)
            }
        };
        hashes.put(index, encoded);
        (Cells::offset(&range), encoded)
    }
}

/// The end of the flat buffer of gradients: those that are final.
#[derive(Clone, Copy)]
pub struct Tail<'a> {
    /// Where it begins.
    pub start: usize,
    /// All from there on.
    pub gradients: &'a [f32],
}
