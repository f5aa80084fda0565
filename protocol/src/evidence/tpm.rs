//! A TPM 2.0, as far as attestation needs one: what is kept in it, its PCRs, and quotes of them.
//!
//! Commands and structures after the TCG's "Trusted Platform Module Library", parts 2 and 3. Everything is
//! big-endian; authorisation is the empty password, as platforms leave it.

use std::io::{self, Read, Write};

/// SHA-256 values of all PCRs.
pub type Pcrs = [[u8; 32]; 24];

/// A connection to a TPM that takes whole commands: the kernel's device.
pub(crate) trait Channel: Read + Write + Send {}
impl<T: Read + Write + Send> Channel for T {}

/// A TPM behind its connection.
pub(crate) struct Tpm(Box<dyn Channel>);

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
const NV_READ: u32 = 0x14e;
const QUOTE: u32 = 0x158;
const NV_READ_PUBLIC: u32 = 0x169;
const PCR_READ: u32 = 0x17e;
/// The owner's hierarchy, and a session that is a password.
const OWNER: u32 = 0x4000_0001;
const PASSWORD: u32 = 0x4000_0009;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_RSASSA: u16 = 0x0014;
/// "TCG", with which everything begins that a TPM itself has made, and what kind of it a quote is.
const GENERATED: u32 = 0xff54_4347;
const ATTEST_QUOTE: u16 = 0x8018;
/// The TPM is busy; the command may come again.
const RC_RETRY: u32 = 0x922;
const ATTEMPTS: usize = 5;
/// Longest answer, and what is read of an index at a time: every TPM gives as much.
const ANSWER_LEN_MAX: usize = 4096;
const READ_LEN_MAX: usize = 512;
/// PCRs that are read at a time.
const PCRS_AT_ONCE: usize = 8;

/// What a TPM says of itself: that it made a quote over its PCRs, and what the asker wanted in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attest<'a> {
    /// The asker's bytes.
    pub(crate) extra: &'a [u8],
    /// SHA-256 over the values of all PCRs, in their order.
    pub(crate) digest: &'a [u8],
}

impl<'a> Attest<'a> {
    /// Reads a `TPMS_ATTEST` that is a quote over all PCRs in SHA-256, and nothing else.
    pub(crate) fn parse(message: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(message);
        if (fields.u32()?, fields.u16()?) != (GENERATED, ATTEST_QUOTE) {
            return None;
        }
        let _signer = fields.sized()?;
        let extra = fields.sized()?;
        // Clock, counters of resets and restarts, whether the clock is safe; version of the firmware.
        fields.take(17 + 8)?;
        let selection = fields.take(10)?;
        let digest = fields.sized()?;
        let whole = fields.0.is_empty() && selection == select(0..24);
        whole.then_some(Self { extra, digest })
    }
}

impl Tpm {
    pub(crate) fn new(channel: impl Channel + 'static) -> Self {
        Self(Box::new(channel))
    }

    /// Everything in an index that the owner may read.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where there is no such index.
    pub(crate) fn nv_read(&mut self, index: u32) -> io::Result<Vec<u8>> {
        let len = self.nv_len(index)?;
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let part = READ_LEN_MAX.min(len - bytes.len());
            let range = [part as u16, bytes.len() as u16].map(u16::to_be_bytes).concat();
            let answer = self.command(NV_READ, &[OWNER, index], true, &range)?;
            let found = Fields(&answer).sized().filter(|found| found.len() == part);
            bytes.extend(found.ok_or_else(malformed)?);
        }
        Ok(bytes)
    }

    /// Length of an index.
    pub(crate) fn nv_len(&mut self, index: u32) -> io::Result<usize> {
        let answer = self.command(NV_READ_PUBLIC, &[index], false, &[])?;
        let public = Fields(&answer).sized();
        let len = public.and_then(|public| public.last_chunk()).ok_or_else(malformed)?;
        Ok(u16::from_be_bytes(*len).into())
    }

    /// The values of all PCRs.
    pub(crate) fn pcrs(&mut self) -> io::Result<Pcrs> {
        let mut pcrs = [[0; 32]; 24];
        for (eighth, values) in pcrs.chunks_exact_mut(PCRS_AT_ONCE).enumerate() {
            let first = PCRS_AT_ONCE * eighth;
            let selection = select(first..first + PCRS_AT_ONCE);
            let answer = self.command(PCR_READ, &[], false, &selection)?;
            let mut fields = Fields(&answer);
            let _counter = fields.u32();
            let read = fields.take(selection.len()).is_some_and(|read| read == selection);
            if !read || fields.u32() != Some(PCRS_AT_ONCE as u32) {
                return Err(io::Error::other("the TPM keeps no PCRs in SHA-256"));
            }
            for value in values {
                let found = fields.sized().and_then(|found| found.try_into().ok());
                *value = found.ok_or_else(malformed)?;
            }
        }
        Ok(pcrs)
    }

    /// A quote over all PCRs and `extra` by a key: `TPMS_ATTEST` and its RSA signature.
    pub(crate) fn quote(&mut self, key: u32, extra: &[u8]) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let scheme = ALG_NULL.to_be_bytes();
        let parameters = [&sized(extra)[..], &scheme, &select(0..24)].concat();
        let answer = self.command(QUOTE, &[key], true, &parameters)?;
        let mut fields = Fields(&answer);
        let message = fields.sized().ok_or_else(malformed)?.to_vec();
        if (fields.u16(), fields.u16()) != (Some(ALG_RSASSA), Some(ALG_SHA256)) {
            return Err(io::Error::other("the TPM's key does not sign with RSASSA and SHA-256"));
        }
        Ok((message, fields.sized().ok_or_else(malformed)?.to_vec()))
    }

    /// One command; its answer's parameters.
    fn command(
        &mut self,
        code: u32,
        handles: &[u32],
        authorised: bool,
        parameters: &[u8],
    ) -> io::Result<Vec<u8>> {
        let answer = self.exchange(code, handles, authorised, parameters)?;
        if !authorised {
            return Ok(answer);
        }
        // Their length stands before, the session's answer behind.
        let mut fields = Fields(&answer);
        let len = fields.u32().and_then(|len| usize::try_from(len).ok());
        len.and_then(|len| fields.take(len)).map(<[u8]>::to_vec).ok_or_else(malformed)
    }

    /// One command; everything behind its answer's head.
    pub(crate) fn exchange(
        &mut self,
        code: u32,
        handles: &[u32],
        authorised: bool,
        parameters: &[u8],
    ) -> io::Result<Vec<u8>> {
        let mut body: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
        if authorised {
            // No nonce, no attributes, an empty password.
            body.extend(9_u32.to_be_bytes());
            body.extend(PASSWORD.to_be_bytes());
            body.extend([0; 5]);
        }
        body.extend(parameters);
        let tag = if authorised { SESSIONS } else { NO_SESSIONS };
        let len = 10 + body.len() as u32;
        let command =
            [&tag.to_be_bytes()[..], &len.to_be_bytes(), &code.to_be_bytes(), &body].concat();
        for _ in 0..ATTEMPTS {
            self.0.write_all(&command)?;
            let (status, answer) = self.answer()?;
            match status {
                0 => return Ok(answer),
                RC_RETRY => {}
                // TPM_RC_HANDLE, whichever of the handles it is.
                status if status & 0xbf == 0x8b => {
                    let what = format!("the TPM has nothing at {:#x?}", handles.last());
                    return Err(io::Error::new(io::ErrorKind::NotFound, what));
                }
                status => {
                    let what = format!("the TPM refuses command {code:#x}: status {status:#x}");
                    return Err(io::Error::other(what));
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the TPM is busy"))
    }

    /// Status and body of the next answer.
    fn answer(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let mut bytes = vec![0; ANSWER_LEN_MAX];
        let mut len = 0;
        loop {
            // The kernel's device gives an answer to one read only.
            match self.0.read(&mut bytes[len..])? {
                0 => return Err(malformed()),
                more => len += more,
            }
            let mut fields = Fields(&bytes[..len]);
            let head = (fields.u16(), fields.u32(), fields.u32());
            if let (Some(_), Some(whole), Some(status)) = head
                && len >= whole as usize
            {
                return match len == whole as usize {
                    true => Ok((status, fields.0.to_vec())),
                    false => Err(malformed()),
                };
            }
        }
    }
}

fn malformed() -> io::Error {
    io::Error::other("the TPM's answer is malformed")
}

/// A selection of these PCRs in SHA-256 (`TPML_PCR_SELECTION`).
fn select(pcrs: std::ops::Range<usize>) -> [u8; 10] {
    let bits = pcrs.fold(0_u32, |bits, pcr| bits | 1 << pcr).to_le_bytes();
    let [high, low] = ALG_SHA256.to_be_bytes();
    [0, 0, 0, 1, high, low, 3, bits[0], bits[1], bits[2]]
}

/// Bytes with their length before them.
pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// Takes fields off the front.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take(2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes)
    }

    /// Bytes with their length before them.
    pub(crate) fn sized(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(len.into())
    }
}
