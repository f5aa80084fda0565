//! `Fresh`: what a session knows of evidence that is asked for anew, on both sides.

use std::time::Duration;

use crate::session::close::CloseReason;
use crate::session::config::nonce;

/// What a session knows of fresh evidence.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// How often the peer's evidence was accepted.
    pub(super) accepted: u64,
    /// When the peer is to be asked.
    pub(super) due: Option<Duration>,
    pub(super) asked: Option<Asked>,
    /// Our own quote, on its way.
    pub(super) own: Option<Own>,
    /// Quotes are made by who owns the session.
    pub(super) is_deferred: bool,
}

/// What the peer was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) nonce: [u8; 32],
    /// Since when it could have answered: who is silent computes, and brings nothing meanwhile.
    pub(super) heard: Option<Duration>,
}

/// A quote of ours.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) report_data: [u8; 64],
    pub(super) is_taken: bool,
    pub(super) made: Option<Result<Vec<u8>, String>>,
}

/// A time of three to five quarters of `every`: workers that joined together are not asked together for ever.
pub(super) fn jittered(every: Duration) -> Result<Duration, CloseReason> {
    let random = nonce().map_err(CloseReason::Io)?;
    let part = u32::from(u16::from_le_bytes([random[0], random[1]]));
    Ok(every * 3 / 4 + every / 2 * part / u32::from(u16::MAX))
}
