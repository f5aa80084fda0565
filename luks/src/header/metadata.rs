//! `Metadata`: what the JSON of a LUKS2 header may say, as types; everything else is refused.
//!
//! An allow-list, because the header is not authenticated: known keys only, one crypt segment under
//! AES-XTS, luks2 keyslots under AES-XTS with bounded key derivations, no flags, no requirements, no
//! re-encryption. Tokens may hold anything; they are kept and not followed.

use base64ct::{Base64, Encoding};

use crate::Error;
use crate::header::binary::LEN;
use crate::header::json::Value;
use crate::keys::antiforensic::STRIPES;
use crate::keys::hash::Hash;
use crate::keys::kdf::{ITERATIONS, Kdf, KdfCost, LANES_MAX, PASSES_MAX};
use crate::keys::keyslot::{Digest, Keyslot};
use crate::memory::LIMIT_KIB_MAX;

/// The only cipher, of keyslots and segments.
pub(crate) const CIPHER: &str = "aes-xts-plain64";
/// The only integrity profile.
pub(crate) const INTEGRITY: &str = "hmac(sha256)";
/// Keyslots, tokens and segments that a header may have.
pub(crate) const KEYSLOTS_MAX: u64 = 32;
const DIGESTS_MAX: u64 = 8;
const KEYSLOTS_LEN_MAX: u64 = 128 << 20;
/// Iterations of the volume key's digest; the key is random, so one would do.
const DIGEST_ITERATIONS_MAX: u64 = 10_000_000;

/// How strict a header is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Both copies must be whole and equal, checksums sha256. The default.
    Strict,
    /// For volumes made elsewhere: one whole copy is enough; sha512 checksums and sha1 splitters pass.
    Compat,
}

/// Where the data is and how it is encrypted; always AES-XTS with 64-bit sector numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bytes from the start of the device.
    pub offset: u64,
    /// Bytes, or up to the end of the device.
    pub size: Option<u64>,
    /// Bytes of an encryption sector, 512 or 4096.
    pub sector: u32,
    /// Whether each sector carries an HMAC-SHA256 tag in dm-integrity's layout.
    pub integrity: bool,
}

/// The metadata of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// In the order of their numbers.
    pub keyslots: Vec<Keyslot>,
    /// Tokens as they are, by number.
    pub tokens: Vec<(u8, Value)>,
    /// The one segment.
    pub segment: Segment,
    /// Digests; exactly one is of the segment.
    pub digests: Vec<Digest>,
    /// Bytes of the area with key material.
    pub keyslots_len: u64,
}

impl Metadata {
    /// Reads the JSON of a header whose copies have `size` bytes each.
    pub(crate) fn parse(text: &[u8], size: u64, policy: Policy) -> Result<Self, Error> {
        let mut top = Object::new(Value::parse(text)?, "the metadata")?;
        let keyslots = numbered(top.take("keyslots")?, "keyslot", KEYSLOTS_MAX)?;
        let keyslots: Vec<Keyslot> = keyslots
            .into_iter()
            .map(|(number, value)| keyslot(number, value, policy))
            .collect::<Result<_, _>>()?;
        let tokens = numbered(top.take("tokens")?, "token", KEYSLOTS_MAX)?;
        for (number, token) in &tokens {
            check_token(*number, token, &keyslots)?;
        }
        let segment = segment(top.take("segments")?)?;
        let digests = numbered(top.take("digests")?, "digest", DIGESTS_MAX)?;
        let digests = digests.into_iter().map(|(number, value)| digest(number, value));
        let digests: Vec<Digest> = digests.collect::<Result<_, _>>()?;
        let keyslots_len = config(top.take("config")?, size)?;
        top.end()?;
        let metadata = Self { keyslots, tokens, segment, digests, keyslots_len };
        metadata.check(size)?;
        Ok(metadata)
    }

    /// The digest of the data's key.
    pub fn segment_digest(&self) -> &Digest {
        self.digests.iter().find(|digest| digest.of_segment).expect("checked when parsed")
    }

    /// Bytes of the data's key.
    pub(crate) fn key_len(&self) -> Result<usize, Error> {
        let digest = self.segment_digest();
        let slot = self.keyslots.iter().find(|slot| digest.keyslots.contains(&slot.number));
        slot.map(|slot| slot.key_len).ok_or_else(|| Error::refused("a segment without a keyslot"))
    }

    /// The keyslots that hold the data's key, in the order in which they are tried.
    pub fn candidates(&self) -> Vec<&Keyslot> {
        let digest = self.segment_digest();
        let bound = |slot: &&Keyslot| slot.priority > 0 && digest.keyslots.contains(&slot.number);
        let mut slots: Vec<&Keyslot> = self.keyslots.iter().filter(bound).collect();
        slots.sort_by_key(|slot| std::cmp::Reverse(slot.priority));
        slots
    }

    /// As JSON, in cryptsetup's order of members.
    pub(crate) fn to_json(&self, size: u64) -> Value {
        let slots = self.keyslots.iter().map(|slot| (slot.number.to_string(), slot.to_json()));
        let tokens = self.tokens.iter().map(|(number, token)| (number.to_string(), token.clone()));
        let digests = self.digests.iter().map(|d| (d.number.to_string(), d.to_json()));
        let config = [
            ("json_size", (size - LEN as u64).to_string()),
            ("keyslots_size", self.keyslots_len.to_string()),
        ];
        let config = config.map(|(key, number)| (key.to_owned(), Value::String(number)));
        object([
            ("keyslots", Value::Object(slots.collect())),
            ("tokens", Value::Object(tokens.collect())),
            ("segments", object([("0", self.segment.to_json())])),
            ("digests", Value::Object(digests.collect())),
            ("config", Value::Object(config.into())),
        ])
    }

    /// What no part of the metadata can know alone.
    fn check(&self, size: u64) -> Result<(), Error> {
        let area = 2 * size..2 * size + self.keyslots_len;
        for (index, slot) in self.keyslots.iter().enumerate() {
            let [offset, len] = slot.area;
            let end = offset.saturating_add(len);
            if offset < area.start || end > area.end {
                return Err(slot.error("its area is outside of the keyslots' area"));
            }
            let overlaps =
                |other: &Keyslot| other.area[0] < end && offset < other.area[0] + other.area[1];
            if self.keyslots[..index].iter().any(overlaps) {
                return Err(slot.error("its area overlaps another's"));
            }
            let digests = self.digests.iter().filter(|d| d.keyslots.contains(&slot.number)).count();
            if digests != 1 {
                return Err(slot.error("it belongs to no digest or to several"));
            }
        }
        let known = |number: &u8| self.keyslots.iter().any(|slot| slot.number == *number);
        if !self.digests.iter().flat_map(|digest| &digest.keyslots).all(known) {
            return Err(Error::damaged("a digest of a keyslot that is not there"));
        }
        let [Some(digest), None] = ({
            let mut bound = self.digests.iter().filter(|digest| digest.of_segment);
            [bound.next(), bound.next()]
        }) else {
            return Err(Error::damaged("the segment belongs to no digest or to several"));
        };
        let integrity = self.segment.integrity;
        for slot in self.keyslots.iter().filter(|slot| digest.keyslots.contains(&slot.number)) {
            if (slot.key_len == 96) != integrity {
                return Err(slot.error("a key whose length does not suit the segment"));
            }
        }
        // A detached header describes a device that begins with its data.
        if self.segment.offset != 0 && self.segment.offset < area.end {
            return Err(Error::refused("a segment that begins inside of the header"));
        }
        Ok(())
    }
}

impl Keyslot {
    fn error(&self, what: &str) -> Error {
        Error::refused(format!("keyslot {}: {what}", self.number))
    }

    fn to_json(&self) -> Value {
        let af = [
            ("type", "luks1".into()),
            ("stripes", (STRIPES as u64).into()),
            ("hash", self.af_hash.name().into()),
        ];
        let area = [
            ("type", "raw".into()),
            ("offset", Value::String(self.area[0].to_string())),
            ("size", Value::String(self.area[1].to_string())),
            ("encryption", CIPHER.into()),
            ("key_size", (self.area_key_len as u64).into()),
        ];
        let mut members =
            vec![("type", "luks2".into()), ("key_size", (self.key_len as u64).into())];
        if self.priority != 1 {
            members.push(("priority", u64::from(self.priority).into()));
        }
        members.extend([("af", object(af)), ("area", object(area)), ("kdf", self.kdf.to_json())]);
        object(members)
    }
}

impl Digest {
    fn to_json(&self) -> Value {
        let names = |numbers: &[u8]| {
            Value::Array(numbers.iter().map(|number| number.to_string().as_str().into()).collect())
        };
        object([
            ("type", "pbkdf2".into()),
            ("keyslots", names(&self.keyslots)),
            ("segments", names(if self.of_segment { &[0] } else { &[] })),
            ("hash", self.hash.name().into()),
            ("iterations", u64::from(self.iterations).into()),
            ("salt", Base64::encode_string(&self.salt).as_str().into()),
            ("digest", Base64::encode_string(&self.digest).as_str().into()),
        ])
    }
}

impl Segment {
    /// Bytes of the data on a device of `device` bytes.
    ///
    /// # Errors
    /// `Truncated` when it does not fit.
    pub fn len_on(self, device: u64) -> Result<u64, Error> {
        let unit = u64::from(self.sector);
        let available = device.saturating_sub(self.offset) / unit * unit;
        match self.size.unwrap_or(available) {
            0 => Err(Error::truncated("the device ends where its data begins")),
            size if size > available => Err(Error::truncated(format!(
                "the data has {size} bytes from byte {} on, the device {device} in all",
                self.offset
            ))),
            size => Ok(size),
        }
    }

    pub(crate) fn to_json(self) -> Value {
        let size = self.size.map_or("dynamic".into(), |size| size.to_string());
        let mut members = vec![
            ("type", "crypt".into()),
            ("offset", Value::String(self.offset.to_string())),
            ("size", Value::String(size)),
            ("iv_tweak", "0".into()),
            ("encryption", CIPHER.into()),
            ("sector_size", u64::from(self.sector).into()),
        ];
        if self.integrity {
            let profile = [
                ("type", INTEGRITY.into()),
                ("journal_encryption", "none".into()),
                ("journal_integrity", "none".into()),
            ];
            members.push(("integrity", object(profile)));
        }
        object(members)
    }
}

impl Kdf {
    fn parse(mut kdf: Object) -> Result<Self, Error> {
        let cost = match kdf.string("type")?.as_str() {
            "pbkdf2" => KdfCost::Pbkdf2 {
                hash: match kdf.string("hash")?.as_str() {
                    "sha256" => Hash::Sha256,
                    "sha512" => Hash::Sha512,
                    _ => return Err(kdf.error("hash", "sha256 or sha512")),
                },
                iterations: kdf.integer("iterations", ITERATIONS[0], ITERATIONS[1])? as u32,
            },
            kind @ ("argon2i" | "argon2id") => {
                let lanes = kdf.integer("cpus", 1, LANES_MAX)? as u32;
                let min = 8 * u64::from(lanes);
                KdfCost::Argon2 {
                    hybrid: kind == "argon2id",
                    time: kdf.integer("time", 1, PASSES_MAX)? as u32,
                    memory_kib: kdf.integer("memory", min, LIMIT_KIB_MAX)? as u32,
                    lanes,
                }
            }
            _ => return Err(kdf.error("type", "pbkdf2, argon2i or argon2id")),
        };
        let salt = kdf.base64("salt")?;
        let salt = salt.try_into().map_err(|_| kdf.error("salt", "32 bytes"))?;
        kdf.end()?;
        Ok(Self { cost, salt })
    }

    fn to_json(&self) -> Value {
        let mut members = vec![("type", self.cost.name().into())];
        match self.cost {
            KdfCost::Pbkdf2 { hash, iterations } => members.extend([
                ("hash", hash.name().into()),
                ("iterations", u64::from(iterations).into()),
            ]),
            KdfCost::Argon2 { time, memory_kib, lanes, .. } => members.extend([
                ("time", u64::from(time).into()),
                ("memory", u64::from(memory_kib).into()),
                ("cpus", u64::from(lanes).into()),
            ]),
        }
        members.push(("salt", Base64::encode_string(&self.salt).as_str().into()));
        object(members)
    }
}

/// An object with these members.
pub(crate) fn object<'a>(members: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Object(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn keyslot(number: u8, value: Value, policy: Policy) -> Result<Keyslot, Error> {
    let place = format!("keyslot {number}");
    let refused = |what: &str| Error::refused(format!("{place}: {what}"));
    let mut slot = Object::new(value, &place)?;
    slot.exactly("type", "luks2")?;
    let key_len = slot.integer("key_size", 0, u64::MAX)? as usize;
    if ![32, 64, 96].contains(&key_len) {
        return Err(refused("a key of other than 32, 64 or 96 bytes"));
    }
    let priority = match slot.has("priority") {
        true => slot.integer("priority", 0, 2)? as u8,
        false => 1,
    };
    let mut af = slot.object("af")?;
    af.exactly("type", "luks1")?;
    af.integer("stripes", STRIPES as u64, STRIPES as u64)?;
    let af_hash = match af.string("hash")?.as_str() {
        "sha1" if policy == Policy::Compat => Hash::Sha1,
        "sha1" => {
            return Err(Error::NeedsCompat(format!(
                "{place}: an anti-forensic splitter with sha1"
            )));
        }
        name => Hash::parse(name)?,
    };
    af.end()?;
    let mut area = slot.object("area")?;
    area.exactly("type", "raw")?;
    area.exactly("encryption", CIPHER)?;
    let extent = [area.decimal("offset")?, area.decimal("size")?];
    let area_key_len = area.integer("key_size", 32, 64)? as usize;
    area.end()?;
    if ![32, 64].contains(&area_key_len) {
        return Err(refused("an area whose key has other than 32 or 64 bytes"));
    }
    if extent[0] % 4096 != 0 || extent[1] < (key_len * STRIPES) as u64 {
        return Err(refused("an area that is not aligned or too short"));
    }
    let kdf = Kdf::parse(slot.object("kdf")?)?;
    slot.end()?;
    Ok(Keyslot { number, key_len, priority, area: extent, area_key_len, af_hash, kdf })
}

fn segment(value: Value) -> Result<Segment, Error> {
    let Ok([(0, value)]) = <[(u8, Value); 1]>::try_from(numbered(value, "segment", 32)?) else {
        return Err(Error::refused("other than one segment"));
    };
    let mut segment = Object::new(value, "segment 0")?;
    segment.exactly("type", "crypt")?;
    segment.exactly("encryption", CIPHER)?;
    segment.exactly("iv_tweak", "0")?;
    let offset = segment.decimal("offset")?;
    let sector = segment.integer("sector_size", 512, 4096)? as u32;
    if ![512, 4096].contains(&sector) {
        return Err(Error::refused("segment 0: sectors of other than 512 or 4096 bytes"));
    }
    let size = match segment.string("size")?.as_str() {
        "dynamic" => None,
        number => Some(decimal(number).ok_or_else(|| segment.error("size", "a decimal number"))?),
    };
    if offset % 4096 != 0 || size.is_some_and(|size| size == 0 || size % u64::from(sector) != 0) {
        return Err(Error::refused("segment 0: an offset or a size that is not aligned"));
    }
    let integrity = segment.has("integrity");
    if integrity {
        let mut profile = segment.object("integrity")?;
        profile.exactly("type", INTEGRITY)?;
        profile.exactly("journal_encryption", "none")?;
        profile.exactly("journal_integrity", "none")?;
        profile.end()?;
    }
    if segment.has("flags") {
        return Err(Error::refused("segment 0: flags"));
    }
    segment.end()?;
    Ok(Segment { offset, size, sector, integrity })
}

fn digest(number: u8, value: Value) -> Result<Digest, Error> {
    let mut digest = Object::new(value, &format!("digest {number}"))?;
    digest.exactly("type", "pbkdf2")?;
    let keyslots = digest.names("keyslots")?;
    let of_segment = match digest.names("segments")?.as_slice() {
        [] => false,
        [0] => true,
        _ => return Err(digest.error("segments", "segment 0 or nothing")),
    };
    let hash = Hash::parse(&digest.string("hash")?)?;
    let iterations = digest.integer("iterations", 1, DIGEST_ITERATIONS_MAX)? as u32;
    let salt = digest.base64("salt")?;
    let salt = salt.try_into().map_err(|_| digest.error("salt", "32 bytes"))?;
    let expected = digest.base64("digest")?;
    if expected.len() != hash.len() {
        return Err(digest.error("digest", "as many bytes as its hash has"));
    }
    digest.end()?;
    Ok(Digest { number, keyslots, of_segment, hash, iterations, salt, digest: expected })
}

/// Reads the configuration: the bytes of the keyslots' area.
fn config(value: Value, size: u64) -> Result<u64, Error> {
    let mut config = Object::new(value, "config")?;
    if config.decimal("json_size")? != size - LEN as u64 {
        return Err(config.error("json_size", "the size of the JSON area"));
    }
    let keyslots_len = config.decimal("keyslots_size")?;
    if keyslots_len % 4096 != 0 || keyslots_len > KEYSLOTS_LEN_MAX {
        return Err(config.error("keyslots_size", "a multiple of 4096 up to 128 MiB"));
    }
    config.end()?;
    Ok(keyslots_len)
}

fn check_token(number: u8, token: &Value, keyslots: &[Keyslot]) -> Result<(), Error> {
    let mut token = Object::new(token.clone(), &format!("token {number}"))?;
    if token.string("type")?.is_empty() {
        return Err(token.error("type", "a name"));
    }
    let known = |number: &u8| keyslots.iter().any(|slot| slot.number == *number);
    match token.names("keyslots")?.iter().all(known) {
        true => Ok(()),
        false => Err(token.error("keyslots", "keyslots that are there")),
    }
}

/// The members of an object whose keys are numbers below `end`, in their order.
fn numbered(value: Value, what: &str, end: u64) -> Result<Vec<(u8, Value)>, Error> {
    let place = format!("{what}s");
    let object = Object::new(value, &place)?;
    let mut items = Vec::new();
    for (key, value) in object.members {
        let number = decimal(&key).filter(|&number| number < end);
        let number = number
            .ok_or_else(|| Error::refused(format!("a {what} whose number is not below {end}")))?;
        items.push((number as u8, value));
    }
    items.sort_by_key(|&(number, _)| number);
    Ok(items)
}

/// A decimal number without sign or leading zeros.
fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    text.parse().ok().filter(|_| digits && canonical)
}

/// An object that is read member by member, until none may be left.
pub(crate) struct Object {
    place: String,
    members: Vec<(String, Value)>,
}

impl Object {
    pub(crate) fn new(value: Value, place: &str) -> Result<Self, Error> {
        match value {
            Value::Object(members) => Ok(Self { place: place.into(), members }),
            _ => Err(Error::damaged(format!("{place} is no JSON object"))),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.members.iter().any(|(name, _)| name == key)
    }

    fn take(&mut self, key: &str) -> Result<Value, Error> {
        let at = self.members.iter().position(|(name, _)| name == key);
        at.map(|at| self.members.remove(at).1)
            .ok_or_else(|| Error::damaged(format!("{}: '{key}' is missing", self.place)))
    }

    fn object(&mut self, key: &str) -> Result<Object, Error> {
        let place = format!("{}: {key}", self.place);
        Object::new(self.take(key)?, &place)
    }

    pub(crate) fn string(&mut self, key: &str) -> Result<String, Error> {
        match self.take(key)? {
            Value::String(text) => Ok(text),
            _ => Err(self.error(key, "a string")),
        }
    }

    fn exactly(&mut self, key: &str, expected: &str) -> Result<(), Error> {
        match self.string(key)? == expected {
            true => Ok(()),
            false => Err(self.error(key, expected)),
        }
    }

    pub(crate) fn integer(&mut self, key: &str, min: u64, max: u64) -> Result<u64, Error> {
        let number = match self.take(key)? {
            Value::Number(text) => decimal(&text),
            _ => None,
        };
        number
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| self.error(key, &format!("an integer from {min} to {max}")))
    }

    /// A 64-bit number that is written as a string.
    fn decimal(&mut self, key: &str) -> Result<u64, Error> {
        decimal(&self.string(key)?).ok_or_else(|| self.error(key, "a decimal number in quotes"))
    }

    pub(crate) fn base64(&mut self, key: &str) -> Result<Vec<u8>, Error> {
        let text = self.string(key)?;
        Base64::decode_vec(&text).map_err(|_| self.error(key, "base64"))
    }

    /// Names of keyslots or segments.
    fn names(&mut self, key: &str) -> Result<Vec<u8>, Error> {
        let Value::Array(items) = self.take(key)? else {
            return Err(self.error(key, "an array"));
        };
        let name = |item: &Value| match item {
            Value::String(text) => decimal(text).filter(|&number| number < KEYSLOTS_MAX),
            _ => None,
        };
        let names: Option<Vec<u64>> = items.iter().map(name).collect();
        let mut names = names.ok_or_else(|| self.error(key, "names of what is there"))?;
        let listed = names.len();
        names.sort_unstable();
        names.dedup();
        match names.len() == listed {
            true => Ok(names.into_iter().map(|name| name as u8).collect()),
            false => Err(self.error(key, "each name once")),
        }
    }

    pub(crate) fn end(&self) -> Result<(), Error> {
        match self.members.first() {
            None => Ok(()),
            Some((key, _)) => Err(Error::refused(format!(
                "{}: '{}' is not known",
                self.place,
                key.escape_default()
            ))),
        }
    }

    pub(crate) fn error(&self, key: &str, expected: &str) -> Error {
        Error::refused(format!("{}: '{key}' is not {expected}", self.place))
    }
}
