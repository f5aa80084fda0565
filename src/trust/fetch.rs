//! Asking a service for a secret, with patience that has an end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{CloseReason, Config, Event, Message, Net, Refusal, Role, Session};
use zeroize::Zeroizing;

use crate::failure::{Doing, Failure};
use crate::hosts::PinnedHost;
use crate::termination;

/// First and longest pause between two tries: within the rate that a service allows one address.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// Where a secret is to be had.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where it listens, and whose it has to be.
    pub at: PinnedHost,
    /// Name of the secret.
    pub app_id: String,
    /// How long to try.
    pub wait: Duration,
}

impl Service {
    /// The usual name.
    pub const APP_ID: &str = "hfl-tdx-coco-app";
    /// The usual patience: a pod of the service that is started anew is there within it.
    pub const WAIT: Duration = Duration::from_secs(120);
}

/// Fetches a secret. What may pass (no answer, a broken connection, "not now") is tried again.
///
/// # Errors
/// When the service refuses, is not to be trusted, or does not answer in time.
pub fn fetch(own: &Arc<Config>, service: &Service) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let Service { at: PinnedHost { address, key }, app_id, wait } = service;
    let pinned = key.map(|key| own.with_policy(own.verifier.policy.clone().with_service_key(key)));
    let config = pinned.transpose().doing("the key of the service")?.map(Arc::new);
    let end = Instant::now() + *wait;
    let config = config.as_ref().unwrap_or(own);
    let mut net = Net::new(Arc::clone(config)).doing("network")?;
    termination::wake(&mut net)?;
    let mut pause = PAUSES[0];
    loop {
        let why = match attempt(&mut net, service, end)? {
            Ok(secret) => {
                log::info!("{address} gave the secret of {app_id}");
                return Ok(secret);
            }
            Err(why) => why,
        };
        if termination::requested() {
            return Err(Failure::new("stopped by a signal while waiting for the secret service"));
        }
        let what = format!("secret of '{app_id}' from {address}: {why}");
        if !why.is_transient() {
            return Err(Failure::new(what).hint("ask its operator what its log says about this"));
        }
        if Instant::now() + pause >= end {
            return Err(Failure::new(format!("{what}; given up after {} s", wait.as_secs()))
                .hint("whether the service runs (hfl secret serve), and --secret-service"));
        }
        log::info!("{what}; trying again");
        termination::pause(pause);
        pause = (pause * 2).min(PAUSES[1]);
    }
}

fn attempt(
    net: &mut Net,
    service: &Service,
    end: Instant,
) -> Result<Result<Zeroizing<Vec<u8>>, CloseReason>, Failure> {
    let id = match net.connect(&service.at.address) {
        Ok(id) => id,
        // A name may come to be known while pods start.
        Err(error) => return Ok(Err(CloseReason::Io(error))),
    };
    let mut secret = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        net.poll(Some(left), &[0; 32]).doing("network")?;
        net.drive(id, |session| {
            secret = pump(session, &service.app_id)?;
            match secret {
                Some(_) => Err(session.close(None)),
                None if left.is_zero() || termination::requested() => Err(CloseReason::Timeout),
                None => Ok(()),
            }
        });
        if let Some(over) = net.take_ended().pop() {
            return Ok(secret.ok_or(over.why));
        }
    }
}

fn pump(session: &mut Session, app_id: &str) -> Result<Option<Zeroizing<Vec<u8>>>, CloseReason> {
    let sealed = loop {
        match session.next_event()? {
            None => return Ok(None),
            Some(Event::Message(Message::Secret(sealed))) => break sealed,
            Some(Event::Opened) => {
                if session.peer().map(|peer| peer.role) != Some(Role::SecretService) {
                    return Err(session.close(Some(Refusal::Role)));
                }
                session.send(&Message::SecretRequest { app_id: app_id.to_owned() })?;
            }
            Some(_) => return Err(session.close(Some(Refusal::Protocol))),
        }
    };
    session.unseal(&sealed).map(Some)
}
