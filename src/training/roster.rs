//! `roster.json`: everybody whom ps0 has admitted, for its restarts and for auditors.

use base64ct::{Base64, Encoding};
use protocol::{Admission, Entry, Roster};
use serde::{Deserialize, Serialize};

use protocol::{hex, unhex};

/// The file in the model's directory.
pub const FILE: &str = "roster.json";

/// An entry, as the file has it: bytes in hexadecimal, the quote in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    number: u64,
    role: String,
    server: String,
    time: u64,
    /// The peer's key and the server's, as hashes of their SubjectPublicKeyInfos.
    keys: [String; 2],
    nonces: [String; 2],
    exporter: String,
    job: String,
    /// Digests of the policies that both judged by: the peer's, the server's.
    policies: [String; 2],
    /// Root of the Merkle tree over a worker's records; entries of before it was kept have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    quote: String,
    previous: String,
}

impl Written {
    fn new(entry: &Entry) -> Self {
        let Admission { role, server, time, keys, nonces, exporter, job, policies, data, quote } =
            &entry.admission;
        Self {
            number: entry.number,
            role: role.to_string(),
            server: server.to_string(),
            time: *time,
            keys: [hex(&keys[0]), hex(&keys[1])],
            nonces: [hex(&nonces[0]), hex(&nonces[1])],
            exporter: hex(exporter),
            job: hex(job),
            policies: [hex(&policies[0]), hex(&policies[1])],
            data: data.map(|data| hex(&data)),
            quote: Base64::encode_string(quote),
            previous: hex(&entry.previous),
        }
    }

    fn read(&self) -> Option<Entry> {
        let bytes = |text: &str| unhex(text)?.try_into().ok();
        let pair = |[a, b]: &[String; 2]| Some([bytes(a)?, bytes(b)?]);
        Some(Entry {
            number: self.number,
            previous: bytes(&self.previous)?,
            admission: Admission {
                role: self.role.parse().ok()?,
                server: self.server.parse().ok()?,
                time: self.time,
                keys: pair(&self.keys)?,
                nonces: pair(&self.nonces)?,
                exporter: bytes(&self.exporter)?,
                job: bytes(&self.job)?,
                policies: pair(&self.policies)?,
                data: self.data.as_deref().map_or(Some(None), |data| bytes(data).map(Some))?,
                quote: Base64::decode_vec(&self.quote).ok()?,
            },
        })
    }
}

/// The file's bytes.
pub fn encode(roster: &Roster) -> Vec<u8> {
    let written: Vec<Written> = roster.entries().iter().map(Written::new).collect();
    serde_json::to_vec_pretty(&written).expect("plain text and numbers")
}

/// The chain in a file's bytes.
///
/// # Errors
/// When they are no roster, or an entry does not follow from the one before.
pub fn parse(bytes: &[u8]) -> Result<Roster, String> {
    let written: Vec<Written> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut roster = Roster::default();
    for (number, entry) in written.iter().enumerate() {
        let entry = entry.read().ok_or_else(|| format!("entry {number} is malformed"))?;
        if !roster.extend(entry) {
            return Err(format!("entry {number} does not follow from the one before"));
        }
    }
    Ok(roster)
}
