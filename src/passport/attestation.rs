//! The statement of `attestation.sigstore.json`: SCAI, an attribute for each who took part, with the evidence.
//!
//! An attribute has all that the evidence was bound to, so that it is judged as a worker judges its fellows; together
//! they are the roster. The last is ps0's own quote over the passport's key and over the other statements.

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};

use crate::job::receipt::Hash;
use crate::passport::key::PublicKey;
use crate::passport::{
    EVALUATION, Files, SIGNATURE, TRAINING, encode, report_data, sha256, statement, subjects,
};
use protocol::dcap::date;
use protocol::{Admission, Entry, Evidence, Roster, hex, unhex};

/// The type of its predicate.
const KIND: &str = "https://in-toto.io/attestation/scai/v0.3";
/// What is said of a participant, and of who signs.
const TRAINED: &str = "TRAINED_IN_TDX";
const SIGNED: &str = "SIGNED_IN_TDX";
const QUOTE: &str = "application/vnd.intel.tdx-quote";

/// What the evidence of a platform was judged by, as a file beside the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collateral {
    /// The file.
    pub name: String,
    /// Its digest.
    pub hash: Hash,
}

impl Collateral {
    /// The file that has these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let hash = sha256(bytes);
        Self { name: format!("collateral-{}.json", hex(&hash[..4])), hash }
    }
}

/// The statement about these files, of everybody on a roster, but for ps0's quote over it; `collateral` is what each
/// was judged by.
pub fn make(
    files: &Files,
    roster: &Roster,
    collateral: impl Fn(&Entry) -> Option<Collateral>,
) -> Value {
    let attribute = |entry: &Entry| participant(entry, collateral(entry));
    let attributes: Vec<Value> = roster.entries().iter().map(attribute).collect();
    statement(subjects(files), KIND, json!({"attributes": attributes}))
}

/// What ps0's quote is to be over: the key, and the statements of signature, training and evaluation, beside this one.
pub fn to_be_quoted(bare: &Value, key: &PublicKey, others: [Option<Hash>; 3]) -> [u8; 64] {
    let [signature, training, evaluation] = others;
    let own = Some(sha256(&encode(bare)));
    report_data(&key.hash(), [signature, training, evaluation, own])
}

/// ps0's quote over a passport.
#[derive(Clone, Debug)]
pub struct OwnQuote<'a> {
    /// The quote.
    pub quote: &'a [u8],
    /// What its platform is judged by.
    pub collateral: Option<Collateral>,
    /// When it was made, in seconds since 1970.
    pub time: u64,
}

/// Adds the quote.
#[must_use]
pub fn quoted(mut bare: Value, key: &PublicKey, others: [Option<Hash>; 3], own: OwnQuote) -> Value {
    let names = [SIGNATURE, TRAINING, EVALUATION];
    let statements: serde_json::Map<String, Value> = names
        .iter()
        .zip(others)
        .filter_map(|(name, hash)| Some(((*name).to_owned(), hex(&hash?).into())))
        .collect();
    let attribute = json!({
        "attribute": SIGNED,
        "target": {"name": "passport.pub", "digest": {"sha256": hex(&key.hash())}},
        "conditions": {
            "collateral": described(own.collateral),
            "publicKey": Base64::encode_string(&key.spki()),
            "reportData":
                "SHA-512 of 'hfl-passport-v1', SHA-256 of the key, of the statements of signature, training, \
                 evaluation, and of this one without this attribute",
            "statements": statements,
            "time": date(own.time),
        },
        "evidence": evidence(own.quote, "ps0 over the key and the statements"),
    });
    if let Some(Value::Array(attributes)) = bare.pointer_mut("/predicate/attributes") {
        attributes.push(attribute);
    }
    bare
}

fn participant(entry: &Entry, collateral: Option<Collateral>) -> Value {
    let Admission { role, server, time, keys, nonces, exporter, job, policies, data, quote } =
        &entry.admission;
    json!({
        "attribute": TRAINED,
        "target": {"name": role.to_string(), "digest": {"sha256": hex(&keys[0])}},
        "conditions": {
            "number": entry.number,
            "previous": hex(&entry.previous),
            "server": server.to_string(),
            "seconds": time,
            "time": date(*time),
            "keys": keys.each_ref().map(|bytes| hex(bytes)),
            "nonces": nonces.each_ref().map(|bytes| hex(bytes)),
            "exporter": hex(exporter),
            "job": hex(job),
            "policies": policies.each_ref().map(|bytes| hex(bytes)),
            "data": data.map(|root| hex(&root)),
            "collateral": described(collateral),
        },
        "evidence": evidence(quote, &role.to_string()),
    })
}

fn described(collateral: Option<Collateral>) -> Value {
    collateral.map_or(
        Value::Null,
        |Collateral { name, hash }| json!({"name": name, "digest": {"sha256": hex(&hash)}}),
    )
}

fn evidence(quote: &[u8], of: &str) -> Value {
    json!({
        "name": format!("quote of {of}"),
        "mediaType": QUOTE,
        "digest": {"sha256": hex(&sha256(quote))},
        "content": Base64::encode_string(quote),
    })
}

/// What a statement says.
#[derive(Clone, Debug)]
pub struct Said {
    /// Everybody, as a chain that holds.
    pub roster: Roster,
    /// What each was judged by, in the same order, then ps0's quote.
    pub collateral: Vec<Option<Collateral>>,
    /// The key that signs.
    pub key: PublicKey,
    /// ps0's quote over it, and what this has to be over.
    pub quote: Vec<u8>,
    /// See [`to_be_quoted`].
    pub report_data: [u8; 64],
    /// When it was made.
    pub time: String,
}

/// What a statement says of these files, beside statements of these digests.
///
/// # Errors
/// When it is none that [`make`] and [`quoted`] make.
pub fn read(found: &Value, files: &Files, others: [Option<Hash>; 3]) -> Result<Said, String> {
    let none = || "it has no quote of ps0 over a key".to_owned();
    let mut bare = found.clone();
    let attributes = bare.pointer_mut("/predicate/attributes").and_then(Value::as_array_mut);
    let signer = attributes.and_then(Vec::pop).ok_or_else(none)?;
    let key = key_of(&signer).ok_or_else(none)?;
    let all = bare.pointer("/predicate/attributes").and_then(Value::as_array).ok_or_else(none)?;
    let mut roster = Roster::default();
    for (number, attribute) in all.iter().enumerate() {
        let entry = entry(attribute).ok_or_else(|| format!("participant {number} is malformed"))?;
        if !roster.extend(entry) {
            return Err(format!("participant {number} does not follow from the one before"));
        }
    }
    let judged: Vec<Option<Collateral>> =
        all.iter().chain([&signer]).map(collateral_of).collect::<Option<_>>().ok_or_else(none)?;
    let quote = quote_of(&signer).ok_or_else(none)?;
    let time = signer.pointer("/conditions/time").and_then(Value::as_str).ok_or_else(none)?;
    // Everything that was taken out of it makes it again: nothing else is in it.
    let again = make(files, &roster, |entry| judged[entry.number as usize].clone());
    if again != bare {
        return Err("it says more, or of other files, than its participants' evidence".into());
    }
    let seconds = protocol::dcap::parse_timestamp(time).ok_or_else(none)?;
    let collateral = judged.last().cloned().flatten();
    let own = OwnQuote { quote: &quote, collateral, time: seconds };
    if quoted(again, &key, others, own) != *found {
        return Err("ps0's quote is said to be over other statements".into());
    }
    let report_data = to_be_quoted(&bare, &key, others);
    Ok(Said { roster, collateral: judged, key, quote, report_data, time: time.to_owned() })
}

/// The key that a statement says is ps0's.
pub fn key_of_statement(found: &Value) -> Option<PublicKey> {
    key_of(found.pointer("/predicate/attributes")?.as_array()?.last()?)
}

fn key_of(attribute: &Value) -> Option<PublicKey> {
    let text = attribute.pointer("/conditions/publicKey")?.as_str()?;
    PublicKey::parse(&Base64::decode_vec(text).ok()?)
}

fn quote_of(attribute: &Value) -> Option<Vec<u8>> {
    let quote = attribute.pointer("/evidence/content")?.as_str()?;
    Base64::decode_vec(quote).ok().filter(|quote| Evidence::parse(quote).is_ok())
}

/// What an attribute's evidence was judged by, if it says so.
fn collateral_of(attribute: &Value) -> Option<Option<Collateral>> {
    let found = attribute.pointer("/conditions/collateral")?;
    if found.is_null() {
        return Some(None);
    }
    let name = found.get("name")?.as_str()?.to_owned();
    Some(Some(Collateral { name, hash: hash(found.pointer("/digest/sha256")?)? }))
}

fn hash(value: &Value) -> Option<Hash> {
    unhex(value.as_str()?)?.try_into().ok()
}

fn entry(attribute: &Value) -> Option<Entry> {
    let conditions = attribute.get("conditions")?;
    let field = |name: &str| conditions.get(name);
    let pair = |name: &str| Some([hash(field(name)?.get(0)?)?, hash(field(name)?.get(1)?)?]);
    Some(Entry {
        number: field("number")?.as_u64()?,
        previous: hash(field("previous")?)?,
        admission: Admission {
            role: attribute.pointer("/target/name")?.as_str()?.parse().ok()?,
            server: field("server")?.as_str()?.parse().ok()?,
            time: field("seconds")?.as_u64()?,
            keys: pair("keys")?,
            nonces: pair("nonces")?,
            exporter: hash(field("exporter")?)?,
            job: hash(field("job")?)?,
            policies: pair("policies")?,
            data: match field("data")? {
                Value::Null => None,
                root => Some(hash(root)?),
            },
            quote: quote_of(attribute)?,
        },
    })
}
