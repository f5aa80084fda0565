//! `hfl model pull`: the volume with a finished model, from ps0 to a trusted node.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use luks::Source as Volume;
use protocol::{CloseReason, Event, LinkId, Message, Net, Refusal, Role, Session};

use super::args::PullArgs;
use crate::failure::{Doing, Failure};
use crate::progress::{Progress, Unit};
use crate::report::print;
use crate::termination;
use crate::training::volume;
use protocol::hex;

/// First and longest pause between two tries.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// Longest silence of a peer that sends a volume: it reads a disk, and computes nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Largest volume: a peer's claim must not fill the disk's table of blocks.
const VOLUME_LEN_MAX: u64 = 1 << 40;

pub(super) fn run(args: PullArgs) -> Result<(), Failure> {
    let trust = args.trust();
    let PullArgs { from, out, wait, .. } = args;
    if out.exists() {
        return Err(Failure::new(format!("{} exists", out.display())).hint("another --out"));
    }
    termination::catch()?;
    let config = trust.config(Role::TrustedNode)?;
    let mut net = Net::new(Arc::clone(&config)).doing("network")?;
    termination::wake(&mut net)?;
    let end = Instant::now() + Duration::from_secs(wait);
    let mut pause = PAUSES[0];
    loop {
        let mut receiving = Receiving::new(&out)?;
        let ended = match net.connect(&from) {
            Ok(id) => receiving.converse(&mut net, id)?,
            Err(error) => Some(CloseReason::Io(error)),
        };
        let Some(why) = ended else { return receiving.keep(&out) };
        drop(receiving);
        if !why.is_transient() || Instant::now() + pause >= end {
            return Err(Failure::new(format!("the volume from {from}: {why}"))
                .hint("--from, and whether ps0 still serves (--linger, hfl model serve)"));
        }
        log::info!("the volume from {from}: {why}; trying again");
        termination::pause(pause);
        pause = (pause * 2).min(PAUSES[1]);
    }
}

/// A volume that comes in, in a file that goes away unless it is kept.
struct Receiving {
    part: PathBuf,
    file: File,
    len: Option<u64>,
    at: u64,
    job: [u8; 32],
    complete: bool,
    moved: Instant,
    /// Once the length is known.
    progress: Option<Progress>,
}

impl Receiving {
    fn new(out: &Path) -> Result<Self, Failure> {
        use std::os::unix::fs::OpenOptionsExt;
        let part = PathBuf::from(format!("{}.part", out.display()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = file.open(&part).doing(part.display())?;
        let moved = Instant::now();
        Ok(Self {
            part,
            file,
            len: None,
            at: 0,
            job: [0; 32],
            complete: false,
            moved,
            progress: None,
        })
    }

    /// One connection's life; `None` when the volume is complete.
    fn converse(&mut self, net: &mut Net, id: LinkId) -> Result<Option<CloseReason>, Failure> {
        loop {
            let left = (self.moved + SILENCE_MAX).saturating_duration_since(Instant::now());
            net.poll(Some(left), &[0; 32]).doing("network")?;
            if termination::requested() {
                return Err(Failure::new("stopped by a signal").hint("the same command again"));
            }
            net.drive(id, |session| self.pump(session));
            if let Some(over) = net.take_ended().pop() {
                return Ok((!self.complete).then_some(over.why));
            }
        }
    }

    fn pump(&mut self, session: &mut Session) -> Result<(), CloseReason> {
        if session.is_open() && self.moved.elapsed() >= SILENCE_MAX {
            return Err(CloseReason::Timeout);
        }
        loop {
            let Some(event) = session.next_event()? else { return Ok(()) };
            self.moved = Instant::now();
            let fits = match event {
                Event::Opened => {
                    let peer = session.peer().map(|peer| peer.role);
                    let serves = [Role::ParameterServer(0), Role::TrustedNode];
                    let is_server = peer.is_some_and(|peer| serves.contains(&peer));
                    self.job = *session.job();
                    match is_server {
                        true => session.send(&Message::Pull).map(|()| true)?,
                        false => return Err(session.close(Some(Refusal::Role))),
                    }
                }
                Event::Message(Message::Volume { len }) => {
                    let first = self.len.replace(len).is_none();
                    self.progress = Some(Progress::new("received", len, Unit::Bytes));
                    first && len <= VOLUME_LEN_MAX
                }
                Event::Chunk { step: 0, offset, data } => {
                    let end = offset.checked_add(data.len() as u64);
                    let end = end.filter(|&end| self.at <= offset && Some(end) <= self.len);
                    match end {
                        Some(end) => {
                            self.file.write_all_at(data, offset).map_err(CloseReason::Io)?;
                            // What is left out is there, too: zeros.
                            self.progress.iter().for_each(|all| all.advance(end - self.at));
                            self.at = end;
                            true
                        }
                        None => false,
                    }
                }
                Event::Message(Message::VolumeEnd) if self.len.is_some() => {
                    self.complete = true;
                    self.progress = None;
                    return Err(session.close(None));
                }
                _ => false,
            };
            if !fits {
                return Err(session.close(Some(Refusal::Protocol)));
            }
        }
    }

    /// Gives the file its name, once it is on the disk and a volume.
    fn keep(self, out: &Path) -> Result<(), Failure> {
        let len = self.len.unwrap_or(0);
        self.file.set_len(len).and_then(|()| self.file.sync_all()).doing(self.part.display())?;
        let header = Volume::new(&self.part).read_header();
        let header = header.map_err(|error| volume::explained(&self.part, &error))?;
        // A hard link does not overwrite what came to be there in between.
        fs::hard_link(&self.part, out).doing(out.display())?;
        print(&format!(
            "{}: {len} bytes of job {}\nuuid      {}\nheader id {}",
            out.display(),
            hex(&self.job),
            header.uuid(),
            header.id()
        ))
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // What stays is the caller's to remove; it holds nothing that is not encrypted.
        let _ = fs::remove_file(&self.part);
    }
}
