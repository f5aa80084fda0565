//! Serving the volume of a finished model to trusted nodes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use luks::Source as Volume;
use protocol::{
    CHUNK_LEN_MAX, CloseReason, Event, LinkId, Message, Net, Over, Refusal, Role, Session,
};

use crate::failure::{Doing, Failure};
use crate::termination;
use crate::training::store::Place;
use crate::training::volume;
use crate::trust::strangers::{Strangers, and_others};

/// Longest silence of a peer: it writes what it gets to a disk, and computes nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Serves the volume of a finished job, if there is one.
///
/// # Errors
/// As [`serve`].
pub fn linger(net: &mut Net, job: &[u8; 32], place: &Place, time: Duration) -> Result<(), Failure> {
    match &place.volume {
        Some(path) if !time.is_zero() => serve(net, job, path, time),
        _ => Ok(()),
    }
}

/// Serves a volume for at most `time`, or until it was fetched once.
///
/// # Errors
/// When it is no LUKS2 volume, somebody writes to it, or it cannot be read.
pub fn serve(net: &mut Net, job: &[u8; 32], path: &Path, time: Duration) -> Result<(), Failure> {
    let header = Volume::new(path).read_header();
    let header = header.map_err(|error| volume::explained(path, &error))?;
    let mut file = File::open(path).doing(path.display())?;
    file.try_lock_shared().map_err(io::Error::from).doing(path.display())?;
    // A block device's metadata has no length.
    let len = file.seek(SeekFrom::End(0)).doing(path.display())?;
    log::info!("{}: {len} bytes, header id {}, for trusted nodes", path.display(), header.id());
    let start = Instant::now();
    let mut sending: BTreeMap<LinkId, Sending> = BTreeMap::new();
    let mut strangers = Strangers::default();
    while start.elapsed() < time && !termination::requested() {
        let left = time.saturating_sub(start.elapsed());
        let silent = sending.values().map(|sending| sending.moved).min();
        let silent = silent.map(|at| (at + SILENCE_MAX).saturating_duration_since(Instant::now()));
        net.poll(silent.into_iter().chain([left]).min(), job).doing("network")?;
        for id in net.ids() {
            net.drive(id, |session| sending.entry(id).or_default().pump(session, &file, len));
        }
        for Over { id, address, session, why } in net.take_ended() {
            // A node leaves once it has everything; whatever else ended it may have lost the end.
            let whole = sending.remove(&id).is_some_and(|sending| sending.at > len);
            let complete = whole && matches!(why, CloseReason::ByPeer);
            match session.peer() {
                Some(peer) if complete => {
                    log::info!("{} at {address} has the volume", peer.role);
                    return Ok(());
                }
                Some(peer) => log::warn!("{} at {address}: {why}", peer.role),
                None => {
                    if let Some(others) = strangers.named(Instant::now()) {
                        log::warn!("{address}, not verified: {why}{}", and_others(others));
                    }
                }
            }
        }
    }
    Ok(())
}

/// How far the volume went to one node.
struct Sending {
    /// Asked for it.
    pulls: bool,
    /// Next byte; beyond the end once that was said.
    at: u64,
    moved: Instant,
}

impl Default for Sending {
    fn default() -> Self {
        Self { pulls: false, at: 0, moved: Instant::now() }
    }
}

impl Sending {
    /// Queues the next part of the volume; to be called again when it is out.
    fn pump(&mut self, session: &mut Session, file: &File, len: u64) -> Result<(), CloseReason> {
        while let Some(event) = session.next_event()? {
            match event {
                Event::Opened => {
                    // Workers may come late, to hear of an end that they have missed.
                    if session.peer().map(|peer| peer.role) != Some(Role::TrustedNode) {
                        return Err(session.close(Some(Refusal::Later)));
                    }
                }
                Event::Message(Message::Pull) if !self.pulls => {
                    self.pulls = true;
                    session.send(&Message::Volume { len })?;
                }
                _ => return Err(session.close(Some(Refusal::Protocol))),
            }
        }
        if session.is_open() && self.moved.elapsed() >= SILENCE_MAX {
            return Err(session.close(None));
        }
        if !self.pulls || self.at > len || session.wants_output() {
            return Ok(());
        }
        self.moved = Instant::now();
        // Zeros are left out, so something is queued only by the first part that holds anything else.
        let mut cell = Vec::new();
        while self.at < len {
            cell.resize((len - self.at).min(CHUNK_LEN_MAX as u64) as usize, 0);
            file.read_exact_at(&mut cell, self.at).map_err(CloseReason::Io)?;
            let at = self.at;
            self.at += cell.len() as u64;
            if cell.iter().any(|&byte| byte != 0) {
                return session.send_chunk(0, at, &cell);
            }
        }
        self.at += 1;
        session.send(&Message::VolumeEnd)
    }
}
