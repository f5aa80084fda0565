//! The loop of the service: verified peers ask, entries decide, the log remembers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use luks::Passphrase;
use protocol::dcap::date;
use protocol::{CloseReason, Event as Said, LinkId, Message, Net, Over, Refusal, Role, Session};
use zeroize::Zeroizing;

use super::args::ServeArgs;
use super::audit::{Audit, Event, Record};
use super::entries::{APP_ID_LEN_MAX, FILE, Secrets};
use super::watch::Watch;
use crate::failure::{Doing, Failure};
use crate::files::read_bounded;
use crate::hosts::listen_addresses;
use crate::termination;
use crate::training::store::{Access, Store};
use crate::training::volume;
use crate::trust::passphrase::KeySource;
use crate::trust::strangers::{Strangers, and_others};
use crate::trust::{TrustOptions, clock};
use protocol::hex;

/// How long a verified peer may take to ask and to leave: its place is one of few.
const ASK_WAIT: Duration = Duration::from_secs(30);

/// So that a deadline is past, not just reached, when a wait for it ends.
const TICK: Duration = Duration::from_millis(1);

/// Where the secrets are.
enum Source {
    File(PathBuf),
    Volume(PathBuf, Passphrase),
}

/// The moment and length of a file: what changes when somebody writes it.
type Stamp = Option<(SystemTime, u64)>;

struct Serving {
    trust: TrustOptions,
    source: Source,
    /// Of the secrets and of the policy, as they were when they were read.
    stamps: [Stamp; 2],
    /// `None` while the files are not fit to be used: then nobody gets anything.
    secrets: Option<Secrets>,
    audit: Audit,
    net: Net,
    watch: Watch,
    opened: BTreeMap<LinkId, Instant>,
    strangers: Strangers,
}

pub(super) fn run(args: ServeArgs) -> Result<(), Failure> {
    termination::catch()?;
    let trust = args.trust();
    let source = source(&args)?;
    let addresses = listen_addresses(&args.listen)?;
    if args.rate == 0 {
        return Err(Failure::usage("--rate counts from 1"));
    }
    let audit = Audit::open(&args.audit).doing(format!("audit log {}", args.audit.display()))?;
    log::info!("audit log: {} entries, the last has sha256 {}", audit.len(), audit.head());
    let mut net = Net::new(trust.config(Role::SecretService)?).doing("network")?;
    net.set_limit(args.rate);
    termination::wake(&mut net)?;
    let files = [Some(source.path()), trust.policy.as_ref()];
    let watch = Watch::new(files.into_iter().flatten()).doing("watch files")?;
    watch.descriptor().and_then(|descriptor| net.watch(descriptor)).doing("watch files")?;
    let stamps = [source.stamp(), stamp(trust.policy.as_ref())];
    let secrets = Some(source.read()?);
    let (opened, strangers) = (BTreeMap::new(), Strangers::default());
    let mut serving =
        Serving { trust, source, stamps, secrets, audit, net, watch, opened, strangers };
    if serving.audit.len() == 0 && serving.secrets.as_ref().is_some_and(Secrets::counts_uses) {
        log::warn!("{}: a new log, so the uses of secrets count from zero", args.audit.display());
    }
    serving.note_loaded()?;
    let local = addresses.listen(&mut serving.net)?;
    log::info!("listening on {local}");
    while !termination::requested() {
        serving.turn()?;
    }
    log::info!("stopped; the last entry of the audit log has sha256 {}", serving.audit.head());
    Ok(())
}

fn source(args: &ServeArgs) -> Result<Source, Failure> {
    let key = KeySource { file: args.key_file.clone(), descriptor: args.key_fd };
    match (&args.secrets, &args.volume) {
        (Some(path), None) => Ok(Source::File(path.clone())),
        (None, Some(path)) => Ok(Source::Volume(path.clone(), key.read()?)),
        _ => Err(Failure::usage("where the secrets are").hint("--secrets FILE, or --volume FILE")),
    }
}

impl Source {
    fn path(&self) -> &PathBuf {
        match self {
            Self::File(path) | Self::Volume(path, _) => path,
        }
    }

    fn stamp(&self) -> Stamp {
        stamp(Some(self.path()))
    }

    fn read(&self) -> Result<Secrets, Failure> {
        let bytes = match self {
            Self::File(path) => read_bounded(path).doing(path.display())?,
            Self::Volume(path, passphrase) => {
                let open = Store::volume(path, passphrase, Access::Read);
                let store = open.map_err(|error| volume::explained(path, &error))?;
                store.read(FILE).doing(store.name_of(FILE))?
            }
        };
        let name = self.path().display();
        let bytes = Zeroizing::new(bytes.ok_or_else(|| {
            Failure::new(format!("{name}: no secrets there")).hint("hfl secret seal, or --secrets")
        })?);
        Secrets::parse(&bytes).doing(format!("secrets {name}"))
    }
}

fn stamp(path: Option<&PathBuf>) -> Stamp {
    let metadata = std::fs::metadata(path?).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

impl Serving {
    fn turn(&mut self) -> Result<(), Failure> {
        // Who was verified has to ask in time.
        let due = self.opened.values().min().map(|since| *since + ASK_WAIT);
        let due = due.map(|at| at.saturating_duration_since(Instant::now()) + TICK);
        self.net.poll(due, &[0; 32]).doing("network")?;
        self.watch.clear();
        self.reload()?;
        for id in self.net.ids() {
            self.serve(id);
        }
        for over in self.net.take_ended() {
            self.opened.remove(&over.id);
            self.note_end(&over);
        }
        Ok(())
    }

    /// Reads the files again when they changed. While they are not fit, nobody gets anything: an entry
    /// that was just taken out must not live on behind a typing error.
    fn reload(&mut self) -> Result<(), Failure> {
        let stamps = [self.source.stamp(), stamp(self.trust.policy.as_ref())];
        if stamps == self.stamps {
            return Ok(());
        }
        let policy_changed = stamps[1] != self.stamps[1];
        self.stamps = stamps;
        let read = self.source.read().and_then(|secrets| {
            if policy_changed && let Some(policy) = self.trust.policy()? {
                self.net.set_policy(policy).doing("network")?;
            }
            Ok(secrets)
        });
        match read {
            Ok(secrets) => {
                self.secrets = Some(secrets);
                self.note_loaded()
            }
            Err(failure) => {
                self.secrets = None;
                log::error!("{failure}; nobody gets a secret until that is mended");
                Ok(())
            }
        }
    }

    fn note_loaded(&mut self) -> Result<(), Failure> {
        let Some(secrets) = &self.secrets else { return Ok(()) };
        let open = secrets.without_rules();
        if !open.is_empty() {
            let names = open.join(", ").escape_default().to_string();
            log::warn!("no rules of their own, whoever --policy accepts gets them: {names}");
        }
        let mut record = Record::new(Event::Loaded, date(clock()));
        record.reason = Some(format!("{} secrets", secrets.len()));
        self.audit.append(record).doing("audit log")
    }

    fn serve(&mut self, id: LinkId) {
        let Self { net, secrets, audit, opened, .. } = self;
        let address = net.address(id);
        let since = opened.get(&id).copied();
        net.drive(id, |session| {
            if since.is_some_and(|since| since.elapsed() > ASK_WAIT) {
                return Err(session.close(None));
            }
            while let Some(event) = session.next_event()? {
                match event {
                    Said::Opened => {
                        opened.insert(id, Instant::now());
                    }
                    Said::Message(Message::SecretRequest { app_id }) => {
                        answer(session, &app_id, secrets.as_ref(), audit, address)?;
                    }
                    Said::Message(Message::Witness { app_id, job, step }) => {
                        let told = Told { app_id, job: hex(&job), step };
                        witness(session, told, secrets.as_ref(), audit, address)?;
                    }
                    _ => return Err(session.close(Some(Refusal::Protocol))),
                }
            }
            Ok(())
        });
    }

    /// Peers that were not verified are told no more than that, but the log knows why. It is on a disk, and each line
    /// waits for that: strangers who come in numbers are counted.
    fn note_end(&mut self, over: &Over) {
        let CloseReason::Rejected(why) = &over.why else {
            log::debug!("{}: {}", over.address, over.why);
            return;
        };
        let Some(others) = self.strangers.named(Instant::now()) else { return };
        let others = and_others(others);
        log::warn!("{}: {}{others}", over.address, over.why);
        let mut record = Record::new(Event::Refused, date(clock()));
        record.address = Some(over.address.to_string());
        record.reason = Some(format!("[{}] {why}{others}", why.code()));
        if let Err(error) = self.audit.append(record) {
            log::error!("audit log: {error}");
        }
    }
}

/// What a server tells of its last checkpoint.
struct Told {
    app_id: String,
    job: String,
    step: u64,
}

/// Writes a later step down, and says which is the last. Who may have the secret may tell of its volume, however often
/// it was given out.
fn witness(
    session: &mut Session,
    told: Told,
    secrets: Option<&Secrets>,
    audit: &mut Audit,
    address: Option<SocketAddr>,
) -> Result<(), CloseReason> {
    let Some(peer) = session.peer().cloned() else {
        return Err(session.close(Some(Refusal::Protocol)));
    };
    if told.app_id.len() > APP_ID_LEN_MAX {
        return Err(session.close(Some(Refusal::Protocol)));
    }
    let Some(secrets) = secrets else { return Err(session.close(Some(Refusal::Later))) };
    let now = clock();
    let Told { app_id, job, step } = told;
    if let Err(why) = secrets.decide(&app_id, &peer, 0, now) {
        log::warn!("{}: tells of {}: {why}", peer.role, app_id.escape_default());
        return Err(session.close(Some(Refusal::Secret)));
    }
    let last = audit.witnessed(&app_id, &job);
    if step < last {
        log::warn!("{}: job {job} is of step {step}, and was of {last}", peer.role);
    }
    if step > last {
        let mut record = Record::new(Event::Witnessed, date(now));
        record.app_id = Some(app_id);
        record.address = address.map(|address| address.to_string());
        record.role = Some(peer.role.to_string());
        (record.job, record.step) = (Some(job), Some(step));
        if let Err(error) = audit.append(record) {
            log::error!("audit log: {error}; step {step} is not witnessed");
            return Err(session.close(Some(Refusal::Later)));
        }
    }
    session.send(&Message::Witnessed { step: step.max(last) })
}

/// Decides, writes it down, and only then sends.
fn answer(
    session: &mut Session,
    app_id: &str,
    secrets: Option<&Secrets>,
    audit: &mut Audit,
    address: Option<SocketAddr>,
) -> Result<(), CloseReason> {
    let Some(peer) = session.peer().cloned() else {
        return Err(session.close(Some(Refusal::Protocol)));
    };
    if app_id.len() > APP_ID_LEN_MAX {
        return Err(session.close(Some(Refusal::Protocol)));
    }
    let Some(secrets) = secrets else { return Err(session.close(Some(Refusal::Later))) };
    let now = clock();
    let decision = secrets.decide(app_id, &peer, audit.released(app_id), now);
    let event = if decision.is_ok() { Event::Released } else { Event::Refused };
    let mut record = Record::new(event, date(now));
    record.app_id = Some(app_id.to_owned());
    record.address = address.map(|address| address.to_string());
    record.role = Some(peer.role.to_string());
    record.mr_td = peer.verdict.as_ref().map(|verdict| hex(&verdict.report.mr_td));
    record.key = Some(hex(&peer.key));
    record.reason = decision.as_ref().err().map(ToString::to_string);
    let shown = app_id.escape_default();
    match &decision {
        Ok(_) => log::info!("{}: gets the secret of {shown}", peer.role),
        Err(why) => log::warn!("{}: does not get the secret of {shown}: {why}", peer.role),
    }
    if let Err(error) = audit.append(record) {
        log::error!("audit log: {error}; nothing is given out");
        return Err(session.close(Some(Refusal::Later)));
    }
    match decision {
        Ok(secret) => {
            let sealed = session.seal(secret)?;
            session.send(&Message::Secret(sealed))
        }
        Err(_) => Err(session.close(Some(Refusal::Secret))),
    }
}
