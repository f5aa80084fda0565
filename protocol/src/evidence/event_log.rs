//! `EventLog`: what firmware and loaders extended into a TD's RTMRs, as its CCEL table tells (TCG PC Client Platform
//! Firmware Profile, crypto-agile form): replayed, and named.
//!
//! The log is not signed: who has it believes nothing of it before the replay leads to the registers of a quote.

use std::fmt;

use ring::digest::{Context, SHA384};

/// Longest log, and most events: firmware gives it 64 KiB or so.
const LOG_LEN_MAX: usize = 4 << 20;
const EVENTS_MAX: usize = 4096;
/// Characters of an event's data that are shown.
const SHOWN_MAX: usize = 100;

/// SHA-384 among the algorithms of the TCG.
const ALGORITHM_SHA384: u16 = 0x000c;
/// It is told, and not extended.
const NO_ACTION: u32 = 3;

/// An event of an RTMR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Number of the RTMR.
    pub register: usize,
    /// What kind of event it is, by the TCG's numbers.
    pub kind: u32,
    /// What the RTMR was extended with.
    pub digest: [u8; 48],
    /// What firmware says about it; nothing vouches for that.
    pub data: Vec<u8>,
}

/// Why bytes are no event log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLogError(&'static str);

impl fmt::Display for EventLogError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "no event log of a TD (/sys/firmware/acpi/tables/data/CCEL): {}", self.0)
    }
}

impl std::error::Error for EventLogError {}

/// A log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog {
    events: Vec<Logged>,
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], EventLogError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(EventLogError("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, EventLogError> {
        self.take(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, EventLogError> {
        self.take(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn sized(&mut self) -> Result<&'a [u8], EventLogError> {
        let len = self.u32()?;
        self.take(len as usize)
    }
}

impl EventLog {
    /// The log in the bytes of a CCEL table's data, which may be longer than it.
    ///
    /// # Errors
    /// When they are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, EventLogError> {
        if bytes.len() > LOG_LEN_MAX {
            return Err(EventLogError("more than 4 MiB"));
        }
        let mut rest = Rest(bytes);
        // The first is in the form of before, and says that the others are not.
        rest.take(8 + 20)?;
        if !rest.sized()?.starts_with(b"Spec ID Event03\0") {
            return Err(EventLogError("its first event is not 'Spec ID Event03'"));
        }
        let mut events = Vec::new();
        while rest.0.len() >= 8 {
            let (index, kind) = (rest.u32()?, rest.u32()?);
            // What follows the last event was never written.
            if index == u32::MAX || (index, kind) == (0, 0) {
                break;
            }
            let digest = digest_of(&mut rest)?;
            let data = rest.sized()?;
            // 0 is MRTD, which firmware cannot extend.
            let register = index.checked_sub(1).map(|number| number as usize);
            match register {
                Some(register @ 0..4) if kind != NO_ACTION => {
                    let digest = digest.ok_or(EventLogError("an event without SHA-384"))?;
                    events.push(Logged { register, kind, digest, data: data.to_vec() });
                }
                None | Some(0..4) => {}
                Some(_) => return Err(EventLogError("a register that no TD has")),
            }
            if events.len() > EVENTS_MAX {
                return Err(EventLogError("more than 4096 events"));
            }
        }
        Ok(Self { events })
    }

    /// All events, in their order.
    pub fn events(&self) -> &[Logged] {
        &self.events
    }

    /// What the RTMRs are after all of it.
    pub fn replay(&self) -> [[u8; 48]; 4] {
        let mut registers = [[0; 48]; 4];
        for event in &self.events {
            let register = &mut registers[event.register];
            *register = extended(register, &event.digest);
        }
        registers
    }
}

/// The SHA-384 of an event, if it has one.
fn digest_of(rest: &mut Rest) -> Result<Option<[u8; 48]>, EventLogError> {
    let mut found = None;
    let count = rest.u32()?;
    if count > 8 {
        return Err(EventLogError("an event with more than eight digests"));
    }
    for _ in 0..count {
        let algorithm = rest.u16()?;
        // SHA-1, SHA-256, SHA-384, SHA-512, SM3.
        let len = match algorithm {
            0x0004 => 20,
            0x000b | 0x0012 => 32,
            ALGORITHM_SHA384 => 48,
            0x000d => 64,
            _ => return Err(EventLogError("a digest of an unknown algorithm")),
        };
        let digest = rest.take(len)?;
        if algorithm == ALGORITHM_SHA384 {
            found = digest.try_into().ok();
        }
    }
    Ok(found)
}

/// A register after an extension.
pub(crate) fn extended(register: &[u8; 48], digest: &[u8; 48]) -> [u8; 48] {
    let mut context = Context::new(&SHA384);
    context.update(register);
    context.update(digest);
    context.finish().as_ref().try_into().expect("SHA-384 has 48 bytes")
}

impl Logged {
    /// The TCG's name of its kind.
    pub fn name(&self) -> &'static str {
        match self.kind {
            0x0000_0004 => "EV_SEPARATOR",
            0x0000_0005 => "EV_ACTION",
            0x0000_0006 => "EV_EVENT_TAG",
            0x0000_000a => "EV_PLATFORM_CONFIG_FLAGS",
            0x0000_000d => "EV_IPL",
            0x8000_0001 => "EV_EFI_VARIABLE_DRIVER_CONFIG",
            0x8000_0002 => "EV_EFI_VARIABLE_BOOT",
            0x8000_0003 => "EV_EFI_BOOT_SERVICES_APPLICATION",
            0x8000_0004 => "EV_EFI_BOOT_SERVICES_DRIVER",
            0x8000_0006 => "EV_EFI_GPT_EVENT",
            0x8000_0007 => "EV_EFI_ACTION",
            0x8000_0008 => "EV_EFI_PLATFORM_FIRMWARE_BLOB",
            0x8000_0009 => "EV_EFI_HANDOFF_TABLES",
            0x8000_000a => "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
            0x8000_000b => "EV_EFI_HANDOFF_TABLES2",
            0x8000_000c => "EV_EFI_VARIABLE_BOOT2",
            0x8000_00e0 => "EV_EFI_VARIABLE_AUTHORITY",
            _ => "an event of another kind",
        }
    }

    /// What of its data is text.
    pub fn text(&self) -> String {
        // UTF-16 of Latin letters is the same with zeros between.
        let printable = self.data.iter().filter(|byte| **byte == b' ' || byte.is_ascii_graphic());
        printable.take(SHOWN_MAX).map(|byte| char::from(*byte)).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::Value;

    use super::*;
    use crate::evidence::vtpm::Evidence;
    use crate::hex::unhex;

    /// Register, kind, digest.
    type Event = (usize, u32, [u8; 48]);

    /// A quote of a real TD that QEMU started, and the digests that its firmware logged: register, kind, digest. They
    /// are in one certificate of dstack.
    pub(crate) fn real() -> ([[u8; 48]; 4], Vec<Event>) {
        let certificate = include_bytes!("../identity/dstack.der");
        // The head of a quote of a TD, behind its length.
        let head = [4, 0, 2, 0, 0x81, 0, 0, 0];
        let start = certificate.windows(8).position(|part| *part == head).expect("a quote");
        let len = u16::from_be_bytes([certificate[start - 2], certificate[start - 1]]);
        let quote = Evidence::parse(&certificate[start..start + usize::from(len)]);
        let quote = quote.expect("a quote").quote;
        let start = certificate.windows(3).position(|part| part == b"[{\"").expect("a log");
        let log = serde_json::Deserializer::from_slice(&certificate[start..]);
        let log: Value = log.into_iter().next().expect("JSON").expect("JSON");
        let number = |event: &Value, name: &str| event[name].as_u64().expect("a number");
        let events = log.as_array().expect("events").iter().map(|event| {
            let digest = unhex(event["digest"].as_str().expect("digits")).expect("digits");
            let digest = digest.try_into().expect("48 bytes");
            (number(event, "imr") as usize, number(event, "event_type") as u32, digest)
        });
        (quote.td().expect("a TD").rt_mr, events.collect())
    }

    /// The same as a table has them.
    fn table(events: &[Event]) -> Vec<u8> {
        let spec = [b"Spec ID Event03\0".as_slice(), &[0; 17]].concat();
        let mut bytes = [&[0; 4][..], &3_u32.to_le_bytes(), &[0; 20]].concat();
        bytes.extend((spec.len() as u32).to_le_bytes());
        bytes.extend(&spec);
        for (register, kind, digest) in events {
            bytes.extend((*register as u32 + 1).to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(1_u32.to_le_bytes());
            bytes.extend(ALGORITHM_SHA384.to_le_bytes());
            bytes.extend(digest);
            bytes.extend(4_u32.to_le_bytes());
            bytes.extend(b"D\0a\0");
        }
        bytes
    }

    #[test]
    fn a_real_log_leads_to_the_registers_of_its_quote() {
        let (registers, events) = real();
        for padding in [&[][..], &[0; 100], &[0xff; 100]] {
            let bytes = [table(&events), padding.to_vec()].concat();
            let log = EventLog::parse(&bytes).expect("a log");
            assert_eq!(log.replay(), registers);
            assert_eq!(log.events().len(), events.len());
            assert_eq!(log.events()[0].text(), "Da");
        }
        let mut changed = events;
        changed[0].2[0] ^= 1;
        let replayed = EventLog::parse(&table(&changed)).expect("a log").replay();
        assert!(replayed[0] != registers[0] && replayed[1..] == registers[1..]);
    }

    #[test]
    fn what_is_no_log_is_an_error_and_is_never_read_past_its_end() {
        let (_, events) = real();
        let bytes = table(&events[..2]);
        for len in 0..bytes.len() {
            let whole = EventLog::parse(&bytes[..len]).is_ok_and(|log| log.events().len() == 2);
            assert!(!whole, "{len}");
        }
        let at = bytes.len() - 2 * (8 + 4 + 2 + 48 + 4 + 4);
        for (offset, value) in [(0, 9_u32), (8, 9), (12, 0x77), (62, u32::MAX)] {
            let mut wrong = bytes.clone();
            wrong[at + offset..at + offset + 4].copy_from_slice(&value.to_le_bytes());
            assert!(EventLog::parse(&wrong).is_err(), "{offset}");
        }
        assert!(EventLog::parse(b"log").is_err());
    }
}
