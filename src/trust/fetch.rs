//! Asking for a secret, an attested service or the data hub of this pod, with patience that has an end.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{
    CloseReason, Config, Event, Message, Net, Refusal, Resource, ResourceError, Role, Session,
};
use zeroize::Zeroizing;

use crate::failure::{Doing, Failure};
use crate::hosts::PinnedHost;
use crate::termination;

/// First and longest pause between two tries: within the rate that a service allows one address.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// Where a secret is to be had.
#[derive(Clone, Debug)]
pub struct Service {
    /// Who has it.
    pub at: Keeper,
    /// Name of the secret at a service of ours; a resource has its own.
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

/// Who keeps a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// A secret service (`hfl secret serve`), which judges us as we judge it.
    Service(PinnedHost),
    /// A Trustee, which the guest's data hub asks for this resource after the guest has proved itself.
    Trustee(Resource),
}

impl Keeper {
    /// What stands before the name of a resource.
    const HUB: &str = "cdh:";

    /// A service whose key is not named.
    pub(crate) fn of(address: &str) -> Self {
        Self::Service(PinnedHost::of(address))
    }
}

impl FromStr for Keeper {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(Self::HUB) {
            Some(name) => Ok(Self::Trustee(name.parse()?)),
            None => text.parse().map(Self::Service),
        }
    }
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Service(host) => f.write_str(&host.address),
            Self::Trustee(resource) => resource.fmt(f),
        }
    }
}

/// A try without success.
struct Miss {
    why: String,
    /// Whether a later one may go better.
    may_pass: bool,
    hint: &'static str,
}

impl From<CloseReason> for Miss {
    fn from(reason: CloseReason) -> Self {
        let hint = match reason.is_transient() {
            true => "whether the service runs (hfl secret serve), and --secret-service",
            false => "ask its operator what its log says about this",
        };
        Self { why: reason.to_string(), may_pass: reason.is_transient(), hint }
    }
}

impl From<ResourceError> for Miss {
    fn from(error: ResourceError) -> Self {
        let hint = match error {
            ResourceError::Io(_) | ResourceError::Off => {
                "agent.guest_components_rest_api=all among the guest's kernel parameters"
            }
            _ => "the log of Trustee's key broker, and its policy of this resource",
        };
        Self { why: error.to_string(), may_pass: error.is_transient(), hint }
    }
}

/// Fetches a secret. What may pass (no answer, a broken connection, "not now") is tried again.
///
/// # Errors
/// When who has it refuses, is not to be trusted, or does not answer in time.
pub fn fetch(own: &Arc<Config>, service: &Service) -> Result<Zeroizing<Vec<u8>>, Failure> {
    match &service.at {
        Keeper::Service(host) => fetch_attested(own, service, host),
        Keeper::Trustee(resource) => {
            patiently(service, &resource.to_string(), |_| Ok(resource.fetch().map_err(Miss::from)))
        }
    }
}

fn fetch_attested(
    own: &Arc<Config>,
    service: &Service,
    host: &PinnedHost,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let pin = |key| own.with_policy(own.verifier.policy.clone().with_service_key(key));
    let config = host.key.map(pin).transpose().doing("the key of the service")?.map(Arc::new);
    let mut net = Net::new(config.unwrap_or_else(|| Arc::clone(own))).doing("network")?;
    termination::wake(&mut net)?;
    let what = format!("secret of '{}' from {}", service.app_id, host.address);
    patiently(service, &what, |end| Ok(attempt(&mut net, service, host, end)?.map_err(Miss::from)))
}

/// Tries until there is a secret, a refusal, or no time left.
fn patiently(
    service: &Service,
    what: &str,
    mut attempt: impl FnMut(Instant) -> Result<Result<Zeroizing<Vec<u8>>, Miss>, Failure>,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let end = Instant::now() + service.wait;
    let mut pause = PAUSES[0];
    loop {
        let Miss { why, may_pass, hint } = match attempt(end)? {
            Ok(secret) => {
                log::info!("{what}: given");
                return Ok(secret);
            }
            Err(miss) => miss,
        };
        if termination::requested() {
            return Err(Failure::new("stopped by a signal while waiting for the secret service"));
        }
        if !may_pass {
            return Err(Failure::new(format!("{what}: {why}")).hint(hint));
        }
        if Instant::now() + pause >= end {
            let after = service.wait.as_secs();
            return Err(Failure::new(format!("{what}: {why}; given up after {after} s")).hint(hint));
        }
        log::info!("{what}: {why}; trying again");
        termination::pause(pause);
        pause = (pause * 2).min(PAUSES[1]);
    }
}

fn attempt(
    net: &mut Net,
    service: &Service,
    host: &PinnedHost,
    end: Instant,
) -> Result<Result<Zeroizing<Vec<u8>>, CloseReason>, Failure> {
    let id = match net.connect(&host.address) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keepers_are_services_or_resources_and_nothing_between() {
        let parse = |text: &str| text.parse::<Keeper>();
        assert_eq!(parse("secrets:50051"), Ok(Keeper::of("secrets:50051")));
        let resource = "default/hfl/model".parse().expect("a name");
        assert_eq!(parse("cdh:default/hfl/model"), Ok(Keeper::Trustee(resource)));
        for bad in
            ["cdh:", "cdh:default/model", "cdh:a/b/c#00", "cdh://a/b", "secrets", "a:b", ":1"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
