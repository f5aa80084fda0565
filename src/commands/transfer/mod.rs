//! `hfl model`: the encrypted volume with the finished model, from ps0 to a trusted node.
//!
//! What travels is the volume as it is on the disk: whoever fetches it needs the passphrase too, and what
//! is inside is vouched for by its manifest. Only LUKS2 volumes are ever sent.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use argh::FromArgs;
use luks::Source as Volume;
use protocol::{CHUNK_LEN_MAX, Ended, Event, LinkId, Message, Net, Over, Refusal, Role, Session};

use crate::commands::volumes;
use crate::failure::{Doing, Failure};
use crate::model::params::hex;
use crate::report::print;
use crate::termination;
use crate::training::roles::listen_address;
use crate::training::store::Place;
use crate::trust::{Attestation, Source, TrustOptions};

/// Longest wait for an event.
const POLL: Duration = Duration::from_secs(1);
/// First and longest pause between two tries.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// Longest silence of a peer.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Largest volume.
const VOLUME_LEN_MAX: u64 = 1 << 40;

/// Move the encrypted volume with a finished model.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "model",
    example = "{command_name} serve --volume model.luks --policy policy.json --collateral c.json",
    example = "{command_name} pull --from ps0.example:60002 --out model.luks"
)]
pub struct ModelArgs {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
enum Command {
    Pull(PullArgs),
    Serve(ServeArgs),
}

/// Fetch the volume from ps0 (hfl --role ps0 --linger, or hfl model serve).
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "pull")]
struct PullArgs {
    /// host:port of ps0 [localhost:60002]
    #[argh(option, default = "\"localhost:60002\".into()")]
    from: String,
    /// file to create
    #[argh(option)]
    out: PathBuf,
    /// seconds to try for while the training runs or nobody answers [600]
    #[argh(option, default = "600")]
    wait: u64,
    /// source of evidence: auto, tdx, coco, azure or sim [auto]
    #[argh(option, default = "Attestation::Auto")]
    attestation: Attestation,
    /// collateral: file, https://PCCS:8081[#SHA256], folder to keep it in; as often as needed
    #[argh(option)]
    collateral: Vec<Source>,
    /// policy file that ps0 must satisfy; tdx needs one [sim: the same image as this one]
    #[argh(option)]
    policy: Option<PathBuf>,
    /// what the simulated TD runs, for tests of who is refused
    #[argh(option, default = "TrustOptions::SIM_IMAGE.into()", hidden_help)]
    sim_image: String,
}

/// Serve a volume that nobody writes to trusted nodes, as ps0.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "serve")]
struct ServeArgs {
    /// the volume
    #[argh(option)]
    volume: PathBuf,
    /// host:port to listen on [localhost:60002]
    #[argh(option, default = "\"localhost:60002\".into()")]
    ps_hosts: String,
    /// seconds to serve for [until it was fetched once]
    #[argh(option)]
    linger: Option<u64>,
    /// source of evidence: auto, tdx, coco, azure or sim [auto]
    #[argh(option, default = "Attestation::Auto")]
    attestation: Attestation,
    /// collateral: file, https://PCCS:8081[#SHA256], folder to keep it in; as often as needed
    #[argh(option)]
    collateral: Vec<Source>,
    /// policy file that nodes must satisfy; tdx needs one [sim: the same image as this one]
    #[argh(option)]
    policy: Option<PathBuf>,
    /// what the simulated TD runs, for tests of who is refused
    #[argh(option, default = "TrustOptions::SIM_IMAGE.into()", hidden_help)]
    sim_image: String,
}

/// Runs a command.
///
/// # Errors
/// Why it could not be done.
pub fn run(args: ModelArgs) -> Result<(), Failure> {
    match args.command {
        Command::Pull(args) => pull(args),
        Command::Serve(args) => {
            termination::catch()?;
            let ServeArgs { attestation, collateral, policy, sim_image, .. } = args;
            let trust = TrustOptions { attestation, collateral, policy, sim_image };
            let address = listen_address(&args.ps_hosts)?;
            let mut net = Net::new(trust.config(Role::ParameterServer(0))?).doing("network")?;
            let local = net.listen(address).doing(format!("listen on {address}"))?;
            log::info!("listening on {local}");
            let until = args.linger.map(Duration::from_secs);
            serve(&mut net, &[0; 32], &args.volume, until.unwrap_or(Duration::MAX))
        }
    }
}

/// Serves a volume for at most `time`, or until it was fetched once.
///
/// # Errors
/// When it is no LUKS2 volume, somebody writes to it, or it cannot be read.
pub fn serve(net: &mut Net, job: &[u8; 32], path: &Path, time: Duration) -> Result<(), Failure> {
    let header = Volume::new(path).read_header();
    let header = header.map_err(|error| volumes::explained(path, &error))?;
    let file = File::open(path).doing(path.display())?;
    file.try_lock_shared().map_err(io::Error::from).doing(path.display())?;
    let len = file.metadata().doing(path.display())?.len();
    log::info!("{}: {len} bytes, header id {}, for trusted nodes", path.display(), header.id());
    let start = Instant::now();
    let mut sending: BTreeMap<LinkId, Sending> = BTreeMap::new();
    while start.elapsed() < time && !termination::requested() {
        net.poll(POLL, job).doing("network")?;
        for id in net.ids() {
            net.drive(id, |session| sending.entry(id).or_default().pump(session, &file, len));
        }
        for Over { id, address, session, why } in net.take_ended() {
            // A node leaves once it has everything; whatever else ended it may have lost the end.
            let whole = sending.remove(&id).is_some_and(|sending| sending.at > len);
            let complete = whole && matches!(why, Ended::ByPeer);
            match session.peer() {
                Some(peer) if complete => {
                    log::info!("{} at {address} has the volume", peer.role);
                    return Ok(());
                }
                _ => log::warn!("{address}: {why}"),
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
    /// Returns whether there is more to send once the output is gone.
    fn pump(&mut self, session: &mut Session, file: &File, len: u64) -> Result<bool, Ended> {
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
        if session.is_open() && self.moved.elapsed() > SILENCE_MAX {
            return Err(session.close(None));
        }
        if !self.pulls || self.at > len || session.wants_output() {
            return Ok(false);
        }
        self.moved = Instant::now();
        if self.at == len {
            self.at += 1;
            session.send(&Message::VolumeEnd)?;
            return Ok(false);
        }
        let mut cell = vec![0; (len - self.at).min(CHUNK_LEN_MAX as u64) as usize];
        file.read_exact_at(&mut cell, self.at).map_err(Ended::Io)?;
        if cell.iter().any(|&byte| byte != 0) {
            session.send_chunk(0, self.at, &cell)?;
        }
        self.at += cell.len() as u64;
        Ok(true)
    }
}

fn pull(args: PullArgs) -> Result<(), Failure> {
    let PullArgs { from, out, wait, attestation, collateral, policy, sim_image } = args;
    if out.exists() {
        return Err(Failure::new(format!("{} exists", out.display())).hint("another --out"));
    }
    let trust = TrustOptions { attestation, collateral, policy, sim_image };
    let config = trust.config(Role::TrustedNode)?;
    let mut net = Net::new(Arc::clone(&config)).doing("network")?;
    let end = Instant::now() + Duration::from_secs(wait);
    let mut pause = PAUSES[0];
    loop {
        let mut receiving = Receiving::new(&out)?;
        let ended = match net.connect(&from) {
            Ok(id) => receiving.converse(&mut net, id)?,
            Err(error) => Some(Ended::Io(error)),
        };
        let Some(why) = ended else { return receiving.keep(&out) };
        drop(receiving);
        if !why.is_transient() || Instant::now() + pause >= end {
            return Err(Failure::new(format!("the volume from {from}: {why}"))
                .hint("--from, and whether ps0 still serves (--linger, hfl model serve)"));
        }
        log::info!("the volume from {from}: {why}; trying again");
        std::thread::sleep(pause);
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
}

impl Receiving {
    fn new(out: &Path) -> Result<Self, Failure> {
        use std::os::unix::fs::OpenOptionsExt;
        let part = PathBuf::from(format!("{}.part", out.display()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = file.open(&part).doing(part.display())?;
        let moved = Instant::now();
        Ok(Self { part, file, len: None, at: 0, job: [0; 32], complete: false, moved })
    }

    /// One connection's life; `None` when the volume is complete.
    fn converse(&mut self, net: &mut Net, id: LinkId) -> Result<Option<Ended>, Failure> {
        loop {
            net.poll(POLL, &[0; 32]).doing("network")?;
            net.drive(id, |session| self.pump(session));
            if let Some(over) = net.take_ended().pop() {
                return Ok((!self.complete).then_some(over.why));
            }
        }
    }

    fn pump(&mut self, session: &mut Session) -> Result<bool, Ended> {
        if session.is_open() && self.moved.elapsed() > SILENCE_MAX {
            return Err(Ended::Timeout);
        }
        loop {
            let Some(event) = session.next_event()? else { return Ok(false) };
            self.moved = Instant::now();
            let fits = match event {
                Event::Opened => {
                    let peer = session.peer().map(|peer| peer.role);
                    let is_server = matches!(peer, Some(Role::ParameterServer(_)));
                    self.job = *session.job();
                    match is_server {
                        true => session.send(&Message::Pull).map(|()| true)?,
                        false => return Err(session.close(Some(Refusal::Role))),
                    }
                }
                Event::Message(Message::Volume { len }) => {
                    let first = self.len.replace(len).is_none();
                    first && len <= VOLUME_LEN_MAX
                }
                Event::Chunk { step: 0, offset, data } => {
                    let end = offset.checked_add(data.len() as u64);
                    let end = end.filter(|&end| self.at <= offset && Some(end) <= self.len);
                    match end {
                        Some(end) => {
                            self.file.write_all_at(data, offset).map_err(Ended::Io)?;
                            self.at = end;
                            true
                        }
                        None => false,
                    }
                }
                Event::Message(Message::VolumeEnd) if self.len.is_some() => {
                    self.complete = true;
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
        let header = header.map_err(|error| volumes::explained(&self.part, &error))?;
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
