//! Evidence of this TD from the quote generation service of its host: the TD's report, made by the module,
//! goes to the service, which answers with a quote. For kernels without configfs-tsm.
//!
//! Messages as in Intel's `qgs_msg_lib` 1.1: a length of four bytes, big-endian, then a header of 16 bytes
//! and the rest, little-endian.

use std::io::{self, Read, Write};

use crate::Attester;
use crate::evidence::quote::QUOTE_LEN_MAX;

/// Bytes of a TD's report (TDREPORT_STRUCT), and where its report data is.
const REPORT_LEN: usize = 1024;
const REPORT_DATA: usize = 128;
/// Version, and kinds of messages.
const MAJOR: u16 = 1;
const MINOR: u16 = 1;
const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;
const HEADER_LEN: usize = 16;
/// Longest answer: a quote and the identity of the enclave that made it.
const ANSWER_LEN_MAX: usize = HEADER_LEN + 8 + 1024 + QUOTE_LEN_MAX;

/// A conversation with the service, and how to have one.
pub trait Host: Send + Sync {
    /// A report of this TD over 64 bytes: 1024 bytes that only this machine can check.
    ///
    /// # Errors
    /// What the kernel answered instead.
    fn report(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>>;

    /// Sends a request to the service and receives its answer.
    ///
    /// # Errors
    /// When nobody answers in time.
    fn connect(&self) -> io::Result<Box<dyn Stream>>;
}

/// Bytes both ways.
pub trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Quotes by way of the host.
pub struct QuoteService<H>(H);

impl<H: Host> QuoteService<H> {
    /// The service of this host.
    pub fn new(host: H) -> Self {
        Self(host)
    }
}

impl<H: Host> Attester for QuoteService<H> {
    fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        let report = self.0.report(report_data)?;
        if report.len() != REPORT_LEN || report[REPORT_DATA..REPORT_DATA + 64] != *report_data {
            return Err(io::Error::other("the TDX module's report is not over what was asked for"));
        }
        let mut stream = self.0.connect().map_err(|error| explained(&error, "reach"))?;
        let answer = exchange(&mut stream, &report).map_err(|error| explained(&error, "ask"))?;
        parse(&answer).map(<[u8]>::to_vec)
    }

    fn name(&self) -> &'static str {
        "tdx_guest and the host's quote service"
    }
}

fn explained(error: &io::Error, doing: &str) -> io::Error {
    let what = "the host's quote generation service (QGS, vsock port 4050)";
    io::Error::new(error.kind(), format!("{doing} {what}: {error}"))
}

fn exchange(stream: &mut dyn Stream, report: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(&request(report))?;
    stream.flush()?;
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len) as usize;
    if !(HEADER_LEN..=ANSWER_LEN_MAX).contains(&len) {
        return Err(io::Error::other(format!("an answer of {len} bytes")));
    }
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn request(report: &[u8]) -> Vec<u8> {
    let size = (HEADER_LEN + 8 + report.len()) as u32;
    let mut message = size.to_be_bytes().to_vec();
    message.extend(MAJOR.to_le_bytes());
    message.extend(MINOR.to_le_bytes());
    // Kind, size, no error, length of the report, no list of enclaves.
    for word in [GET_QUOTE_REQUEST, size, 0, report.len() as u32, 0] {
        message.extend(word.to_le_bytes());
    }
    message.extend(report);
    message
}

/// The quote in an answer; every length has to fit.
pub(crate) fn parse(answer: &[u8]) -> io::Result<&[u8]> {
    let wrong = |what: &str| io::Error::other(format!("the quote service's answer: {what}"));
    let word = |at: usize| {
        let bytes = answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_le_bytes).ok_or_else(|| wrong("too short"))
    };
    let major = answer.get(..2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    if major != Some(MAJOR) || word(4)? != GET_QUOTE_RESPONSE || word(8)? as usize != answer.len() {
        return Err(wrong("not of this protocol"));
    }
    match word(12)? {
        0 => {}
        code => return Err(wrong(&format!("error {code:#x} (see the log of QGS on the host)"))),
    }
    let (id, quote) = (word(16)? as usize, word(20)? as usize);
    let body = &answer[HEADER_LEN + 8..];
    match body.len().checked_sub(id).is_some_and(|left| left == quote) && quote > 0 {
        true => Ok(&body[id..]),
        false => Err(wrong("lengths that do not fit")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    type Answer = fn(&[u8]) -> Vec<u8>;

    /// A host whose service is a thread that answers as it is told.
    struct Standin {
        answer: Answer,
        honest: bool,
    }

    impl Host for Standin {
        fn report(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
            let mut report = vec![0x81; REPORT_LEN];
            report[REPORT_DATA..REPORT_DATA + 64].copy_from_slice(report_data);
            report[REPORT_DATA] ^= u8::from(!self.honest);
            Ok(report)
        }

        fn connect(&self) -> io::Result<Box<dyn Stream>> {
            let (ours, mut theirs) = UnixStream::pair()?;
            let answer = self.answer;
            std::thread::spawn(move || {
                let mut len = [0; 4];
                theirs.read_exact(&mut len).expect("a length");
                let mut message = vec![0; u32::from_be_bytes(len) as usize];
                theirs.read_exact(&mut message).expect("a request");
                // Version 1.1, kind 0, its own size, no error, a report of 1024 bytes, no list.
                assert_eq!(message[..4], [1, 0, 1, 0]);
                assert_eq!(message[4..12], [[0; 4], 1048_u32.to_le_bytes()].concat());
                assert_eq!(message[12..24], [[0; 4], 1024_u32.to_le_bytes(), [0; 4]].concat());
                // The client may have left.
                let _ = theirs.write_all(&answer(&message[24..]));
            });
            Ok(Box::new(ours))
        }
    }

    fn message(kind: u32, error: u32, id: &[u8], quote: &[u8]) -> Vec<u8> {
        let size = (HEADER_LEN + 8 + id.len() + quote.len()) as u32;
        let words = [kind, size, error, id.len() as u32, quote.len() as u32];
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        [&size.to_be_bytes()[..], &[1, 0, 1, 0], &words, id, quote].concat()
    }

    fn echo(report: &[u8]) -> Vec<u8> {
        message(
            1,
            0,
            b"enclave",
            &[b"quote over ", &report[REPORT_DATA..REPORT_DATA + 64]].concat(),
        )
    }

    #[test]
    fn the_quote_is_over_what_was_asked_for() {
        let service = QuoteService::new(Standin { answer: echo, honest: true });
        assert_eq!(
            service.quote(&[9; 64]).expect("a quote"),
            [&b"quote over "[..], &[9; 64]].concat()
        );
        let liar = QuoteService::new(Standin { answer: echo, honest: false });
        assert!(
            liar.quote(&[9; 64]).expect_err("another report").to_string().contains("asked for")
        );
    }

    #[test]
    fn answers_that_do_not_fit_are_errors_that_name_the_service() {
        let answers: [(Answer, &str); 7] = [
            (|_| message(1, 0x1_2345, b"", b""), "0x12345"),
            (|_| message(3, 0, b"", b"quote"), "not of this protocol"),
            (|_| message(1, 0, b"", b""), "lengths"),
            (|_| vec![0, 0, 0, 3, 1, 2, 3], "3 bytes"),
            (|_| u32::MAX.to_be_bytes().to_vec(), "4294967295 bytes"),
            (|_| Vec::new(), "QGS"),
            (
                |_| {
                    let mut answer = message(1, 0, b"id", b"quote");
                    answer[24] = 200;
                    answer
                },
                "lengths",
            ),
        ];
        for (answer, part) in answers {
            let service = QuoteService::new(Standin { answer, honest: true });
            let error = service.quote(&[9; 64]).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
        let good = &message(1, 0, b"id", b"quote")[4..];
        assert_eq!(parse(good).expect("valid"), b"quote");
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err(), "{len}");
        }
    }
}
