//! The secrets of a service: the file parsed into types, and who may have which.
//!
//! `{ "app id": "passphrase", ... }`, or in the place of a passphrase an object with `secret` and rules.

use std::collections::BTreeMap;
use std::fmt;

use protocol::dcap::parse_timestamp;
use protocol::{Peer, Policy, Rejection};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// The file inside a volume.
pub(super) const FILE: &str = "secrets.json";
/// Largest file, most entries, longest name and secret. All of it is in memory and wiped after; a name travels in a
/// message and into the log.
const FILE_LEN_MAX: usize = 1 << 20;
const ENTRIES_MAX: usize = 1024;
pub(super) const APP_ID_LEN_MAX: usize = 128;
const SECRET_LEN_MAX: usize = 4096;

/// All secrets of a service, by app id.
pub(super) struct Secrets(BTreeMap<String, Entry>);

/// A secret and who may have it.
pub(super) struct Entry {
    secret: Zeroizing<String>,
    /// Rules of this secret, beside those of the service.
    policy: Option<Policy>,
    /// Releases in all.
    uses: Option<u64>,
    /// The last second in which it is given out, since 1970.
    until: Option<u64>,
}

/// Why a secret is not given out; the peer is not told which.
#[derive(Debug, PartialEq)]
pub(super) enum Denied {
    Unknown,
    Expired,
    Spent,
    Rejected(Rejection),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("no such app id"),
            Self::Expired => f.write_str("its time is over"),
            Self::Spent => f.write_str("it was given out as often as it may be"),
            Self::Rejected(why) => write!(f, "[{}] {why}", why.code()),
        }
    }
}

impl Secrets {
    /// Reads the file.
    ///
    /// # Errors
    /// Unknown or repeated keys, empty or overlong names and secrets, impossible rules. Messages name the
    /// place, never what is there.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > FILE_LEN_MAX {
            return Err("more than 1 MiB".into());
        }
        let secrets: Self = serde_json::from_slice(bytes).map_err(|error| {
            // The message could quote a secret; only our own texts are known not to.
            let at = format!("line {}, column {}", error.line(), error.column());
            let text = error.to_string();
            let own = text.strip_prefix(OWN).and_then(|text| text.split(" at line").next());
            format!("{at}: {}", own.unwrap_or("not the JSON of secrets"))
        })?;
        match secrets.0.len() > ENTRIES_MAX {
            true => Err(format!("more than {ENTRIES_MAX} secrets")),
            false => Ok(secrets),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Names of secrets that any code may have that the service accepts.
    pub(super) fn without_rules(&self) -> Vec<&str> {
        let open = self.0.iter().filter(|(_, entry)| entry.policy.is_none());
        open.map(|(name, _)| name.as_str()).collect()
    }

    /// Whether any secret may be given out so often only, which the audit log counts.
    pub(super) fn counts_uses(&self) -> bool {
        self.0.values().any(|entry| entry.uses.is_some())
    }

    /// The secret of `app_id` for a verified peer; `released` says how often it was given out.
    ///
    /// # Errors
    /// Why the peer does not get it.
    pub(super) fn decide(
        &self,
        app_id: &str,
        peer: &Peer,
        released: u64,
        now: u64,
    ) -> Result<&[u8], Denied> {
        let entry = self.0.get(app_id).ok_or(Denied::Unknown)?;
        if let Some(policy) = &entry.policy {
            peer.satisfies(policy, now).map_err(Denied::Rejected)?;
        }
        if entry.until.is_some_and(|until| now > until) {
            return Err(Denied::Expired);
        }
        if entry.uses.is_some_and(|uses| released >= uses) {
            return Err(Denied::Spent);
        }
        Ok(entry.secret.as_bytes())
    }
}

/// Begins the errors that are our own words.
const OWN: &str = "secrets: ";

fn wrong<E: de::Error>(what: impl fmt::Display) -> E {
    E::custom(format!("{OWN}{what}"))
}

impl<'de> Deserialize<'de> for Secrets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Secrets;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with a secret an app id")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Secrets, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((name, entry)) = map.next_entry::<String, Entry>()? {
                    if !(1..=APP_ID_LEN_MAX).contains(&name.len()) {
                        return Err(wrong("an app id has 1 to 128 bytes"));
                    }
                    if entries.insert(name, entry).is_some() {
                        return Err(wrong("an app id is there twice"));
                    }
                }
                Ok(Secrets(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// An entry with rules, as it is written.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    secret: Secret,
    policy: Option<Box<RawValue>>,
    uses: Option<u64>,
    until: Option<String>,
}

/// A secret's text, wiped when dropped.
struct Secret(Zeroizing<String>);

impl Secret {
    fn new<E: de::Error>(text: &str) -> Result<Self, E> {
        match (1..=SECRET_LEN_MAX).contains(&text.len()) {
            true => Ok(Self(Zeroizing::new(text.to_owned()))),
            false => Err(wrong("a secret has 1 to 4096 bytes")),
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a secret")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
                Secret::new(text)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a secret, or an object with one")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Entry, E> {
                let Secret(secret) = Secret::new(text)?;
                Ok(Entry { secret, policy: None, uses: None, until: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                let written = Written::deserialize(MapAccessDeserializer::new(map))?;
                let policy = written.policy.map(|raw| Policy::parse(raw.get().as_bytes()));
                let until = written.until.map(|text| {
                    parse_timestamp(&text).ok_or_else(|| wrong("until is no 2026-01-31T00:00:00Z"))
                });
                Ok(Entry {
                    secret: written.secret.0,
                    policy: policy.transpose().map_err(|why| wrong(format!("policy: {why}")))?,
                    uses: written.uses,
                    until: until.transpose()?,
                })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use protocol::{Policy, Role, SimPlatform, Verdict};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn verdict(image: &str) -> Verdict {
        let report = *SimPlatform::with_td(NOW, image, false).report();
        Verdict { report, platform: None, pcrs: None }
    }

    fn policy(image: &str, roles: &str) -> String {
        let template = Policy::template(&verdict(image).report, None);
        template.replacen("\"mr_td\"", &format!("\"roles\": [{roles}], \"mr_td\""), 1)
    }

    #[test]
    fn a_secret_goes_to_its_measurements_and_roles_its_number_of_times_until_its_end() {
        let text = format!(
            r#"{{"flat":"word","one":{{"secret":"s","uses":1,"until":"2027-01-31T00:00:00Z","policy":{}}}}}"#,
            policy("ours", "\"worker\"")
        );
        let secrets = Secrets::parse(text.as_bytes()).expect("valid");
        assert_eq!((secrets.len(), secrets.without_rules()), (2, vec!["flat"]));
        let (ours, theirs) = (verdict("ours"), verdict("theirs"));
        let worker = Role::Worker(0);
        let decide = |id, verdict, role, released, now| {
            let verdict: Option<&Verdict> = Some(verdict);
            let peer = Peer { role, verdict: verdict.cloned(), key: [7; 32] };
            secrets.decide(id, &peer, released, now).map(<[u8]>::to_vec)
        };
        assert_eq!(decide("flat", &theirs, Role::TrustedNode, 9, NOW), Ok(b"word".to_vec()));
        assert_eq!(decide("one", &ours, worker, 0, NOW), Ok(b"s".to_vec()));
        assert_eq!(decide("none", &ours, worker, 0, NOW), Err(Denied::Unknown));
        assert_eq!(decide("one", &ours, worker, 1, NOW), Err(Denied::Spent));
        let end = parse_timestamp("2027-01-31T00:00:00Z").expect("a date");
        assert!(decide("one", &ours, worker, 0, end).is_ok());
        assert_eq!(decide("one", &ours, worker, 0, end + 1), Err(Denied::Expired));
        let role = decide("one", &ours, Role::ParameterServer(0), 0, NOW).expect_err("a role");
        assert!(role.to_string().contains("[role]"), "{role}");
        let other = decide("one", &theirs, worker, 0, NOW).expect_err("a measurement");
        assert!(other.to_string().contains("[measurement]"), "{other}");
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_shows_no_secret() {
        for (text, expected) in [
            ("", "not the JSON"),
            ("[]", "not the JSON"),
            (r#"{"a":"hunter2","a":"hunter2"}"#, "twice"),
            (r#"{"":"hunter2"}"#, "1 to 128"),
            (r#"{"a":""}"#, "1 to 4096"),
            (r#"{"a":{"secret":"hunter2","use":1}}"#, "line 1"),
            (r#"{"a":{"secret":"hunter2","secret":"hunter2"}}"#, "line 1"),
            (r#"{"a":{"secret":"hunter2","until":"soon"}}"#, "until"),
            (r#"{"a":{"secret":"hunter2","policy":{"verify_mr_td":"on"}}}"#, "tdx_mrs"),
            (
                r#"{"a":{"secret":"hunter2","policy":{"allow_debug":true,"allow_debug":true}}}"#,
                "policy",
            ),
            (r#"{"a":hunter2}"#, "not the JSON"),
            (r#"{"a":"hunter2"} x"#, "not the JSON"),
        ] {
            let error = Secrets::parse(text.as_bytes()).err().expect("refused");
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
