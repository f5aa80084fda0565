//! Telling a secret service of a job's last checkpoint: what it wrote down is out of reach of who has the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{CloseReason, Config, Event, Message, Net, Refusal, Role, Session};

use crate::failure::{Doing, Failure};
use crate::hosts::PinnedHost;
use crate::termination;
use crate::trust::fetch::{Keeper, Service};

/// First and longest pause between two tries: within the rate that a service allows one address.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// A checkpoint that a service is told of.
#[derive(Clone, Debug)]
pub struct Telling {
    host: PinnedHost,
    app_id: String,
    /// Digest of the job.
    job: [u8; 32],
    /// How long to try.
    wait: Duration,
    /// Whether a signal ends the patience.
    heeds_signals: bool,
}

impl Telling {
    /// To the service that has a volume's passphrase; a Trustee writes nothing down.
    pub fn new(service: &Service, job: [u8; 32]) -> Option<Self> {
        let Keeper::Service(host) = &service.at else { return None };
        let (host, app_id) = (host.clone(), service.app_id.clone());
        Some(Self { host, app_id, job, wait: service.wait, heeds_signals: true })
    }

    /// The same for so long, and though a signal came: what ends a role is told of too.
    pub fn whatever_happens(self, wait: Duration) -> Self {
        Self { wait, heeds_signals: false, ..self }
    }

    /// Tells of a checkpoint; the last step of the job that the service was told of, this one included.
    ///
    /// # Errors
    /// When the service refuses, is not to be trusted, or does not answer in time.
    pub fn tell(&self, own: &Arc<Config>, step: u64) -> Result<u64, Failure> {
        let pin = |key| own.with_policy(own.verifier.policy.clone().with_service_key(key));
        let config = self.host.key.map(pin).transpose().doing("the key of the service")?;
        let config = config.map_or_else(|| Arc::clone(own), Arc::new);
        let mut net = Net::new(config).doing("network")?;
        if self.heeds_signals {
            termination::wake(&mut net)?;
        }
        let (end, mut pause) = (Instant::now() + self.wait, PAUSES[0]);
        loop {
            let why = match self.attempt(&mut net, end, step)? {
                Ok(last) => return Ok(last),
                Err(why) => why,
            };
            let what = format!("step {step} told to {}: {why}", self.host.address);
            let left = end.saturating_duration_since(Instant::now());
            if !why.is_transient() || left <= pause || self.is_given_up() {
                return Err(Failure::new(what)
                    .hint("whether the service runs (hfl secret serve), and what its log says"));
            }
            log::info!("{what}; trying again");
            match self.heeds_signals {
                true => termination::pause(pause),
                false => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    fn is_given_up(&self) -> bool {
        self.heeds_signals && termination::requested()
    }

    fn attempt(
        &self,
        net: &mut Net,
        end: Instant,
        step: u64,
    ) -> Result<Result<u64, CloseReason>, Failure> {
        let id = match net.connect(&self.host.address) {
            Ok(id) => id,
            Err(error) => return Ok(Err(CloseReason::Io(error))),
        };
        let mut last = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            net.poll(Some(left), &[0; 32]).doing("network")?;
            net.drive(id, |session| {
                last = self.pump(session, step)?;
                match last {
                    Some(_) => Err(session.close(None)),
                    None if left.is_zero() || self.is_given_up() => Err(CloseReason::Timeout),
                    None => Ok(()),
                }
            });
            if let Some(over) = net.take_ended().pop() {
                return Ok(last.ok_or(over.why));
            }
        }
    }

    fn pump(&self, session: &mut Session, step: u64) -> Result<Option<u64>, CloseReason> {
        loop {
            match session.next_event()? {
                None => return Ok(None),
                Some(Event::Message(Message::Witnessed { step })) => return Ok(Some(step)),
                Some(Event::Opened) => {
                    if session.peer().map(|peer| peer.role) != Some(Role::SecretService) {
                        return Err(session.close(Some(Refusal::Role)));
                    }
                    let (app_id, job) = (self.app_id.clone(), self.job);
                    session.send(&Message::Witness { app_id, job, step })?;
                }
                Some(_) => return Err(session.close(Some(Refusal::Protocol))),
            }
        }
    }
}
