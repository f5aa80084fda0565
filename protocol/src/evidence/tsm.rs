//! Evidence of this TD from the kernel: configfs-tsm (Linux 6.7, `configfs-tsm-report` ABI).
//!
//! A directory below `/sys/kernel/config/tsm/report` is a request: 64 bytes into `inblob`, the quote out
//! of `outblob`. `generation` counts writes; if it moved by more than ours, somebody else wrote to the
//! same request in between and the quote may be theirs.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Attester;

/// Where the kernel has it.
const FOLDER: &str = "/sys/kernel/config/tsm/report";
/// The provider inside a TD.
const PROVIDER: &str = "tdx_guest";
/// The largest answer that the kernel gives.
const QUOTE_LEN_MAX: u64 = 32 << 10;
/// The host's service is busy now and then (EBUSY, EAGAIN, a timeout of the kernel's): 2 s together.
const ATTEMPTS: u32 = 5;
/// Most left-over requests that are stepped over.
const NAMES_MAX: usize = 1000;
const PAUSE: Duration = Duration::from_millis(200);

/// The kernel's interface for quotes.
#[derive(Debug)]
pub struct ConfigfsTsm {
    folder: PathBuf,
    requests: AtomicU64,
    /// Makes a request's directory; configfs fills it.
    make: fn(&Path) -> io::Result<()>,
}

impl ConfigfsTsm {
    /// The interface of this system, if it has one.
    pub fn find() -> Option<Self> {
        let folder = PathBuf::from(FOLDER);
        folder.is_dir().then(|| Self::at(folder, |path| fs::create_dir(path)))
    }

    fn at(folder: PathBuf, make: fn(&Path) -> io::Result<()>) -> Self {
        Self { folder, requests: AtomicU64::new(0), make }
    }

    fn request(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        let request = self.new_request()?;
        let provider = request.read("provider", 64)?;
        if provider.trim_ascii() != PROVIDER.as_bytes() {
            let provider = String::from_utf8_lossy(&provider).escape_default().to_string();
            return Err(io::Error::other(format!("this is no TD: its provider is {provider}")));
        }
        let before = request.generation()?;
        let inblob = OpenOptions::new().write(true).open(request.0.join("inblob"));
        inblob
            .and_then(|mut file| file.write_all(report_data))
            .map_err(|error| explained(&error, "write the report data"))?;
        let quote = request.read("outblob", QUOTE_LEN_MAX)?;
        if request.generation()? != before + 1 {
            return Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "somebody else used the same request",
            ));
        }
        if quote.is_empty() {
            return Err(io::Error::other(
                "an empty quote: the host's quote generation service does not run, or this guest \
                 cannot reach it (check QGS and its vsock port on the host)",
            ));
        }
        Ok(quote)
    }
}

impl ConfigfsTsm {
    /// A directory of a name that nobody has; a process of our number may have died and left some.
    fn new_request(&self) -> io::Result<Request> {
        for _ in 0..NAMES_MAX {
            let number = self.requests.fetch_add(1, Ordering::Relaxed);
            let path = self.folder.join(format!("hfl-{}-{number}", std::process::id()));
            match (self.make)(&path) {
                Ok(()) => return Ok(Request(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(explained(&error, "make a request")),
            }
        }
        Err(io::Error::other("too many requests of dead processes in configfs-tsm"))
    }
}

impl Attester for ConfigfsTsm {
    fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.request(report_data) {
                Err(error) if is_transient(&error) && attempt < ATTEMPTS => {
                    std::thread::sleep(PAUSE * attempt);
                }
                answer => return answer,
            }
        }
    }

    fn name(&self) -> &'static str {
        "configfs-tsm"
    }
}

/// A request's directory, removed when dropped.
struct Request(PathBuf);

impl Request {
    fn read(&self, name: &str, len_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.0.join(name));
        file.and_then(|file| file.take(len_max + 1).read_to_end(&mut bytes))
            .map_err(|error| explained(&error, name))?;
        match bytes.len() as u64 > len_max {
            true => Err(io::Error::other(format!("{name} of more than {len_max} bytes"))),
            false => Ok(bytes),
        }
    }

    fn generation(&self) -> io::Result<u64> {
        let bytes = self.read("generation", 32)?;
        let text = std::str::from_utf8(bytes.trim_ascii()).ok();
        text.and_then(|text| text.parse().ok())
            .ok_or_else(|| io::Error::other("a generation that is no number"))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // The next boot removes what cannot be removed now.
        let _ = fs::remove_dir(&self.0);
    }
}

/// The kernel's error in words, its kind kept.
fn explained(error: &io::Error, doing: &str) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::ResourceBusy => "another quote is being made",
        io::ErrorKind::TimedOut => {
            "the host's quote generation service did not answer within 30 seconds"
        }
        io::ErrorKind::PermissionDenied => "only root may ask for quotes",
        _ => return io::Error::new(error.kind(), format!("{doing}: {error}")),
    };
    io::Error::new(error.kind(), format!("{doing}: {why}"))
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A directory whose request is answered by a thread that plays the kernel: pipes stand for the
    /// blobs, so that reading waits for the answer as it does there.
    struct Kernel(PathBuf);

    impl Kernel {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hfl-tsm-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("create");
            Self(path)
        }
    }

    impl Drop for Kernel {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Fills a request's directory and serves it; `answer` makes the quote, `steps` moves `generation`.
    fn serve(
        path: &Path,
        provider: &str,
        steps: u64,
        answer: fn(&[u8]) -> Vec<u8>,
    ) -> io::Result<()> {
        fs::create_dir(path)?;
        fs::write(path.join("provider"), format!("{provider}\n"))?;
        fs::write(path.join("generation"), "7\n")?;
        for name in ["inblob", "outblob"] {
            assert!(Command::new("mkfifo").arg(path.join(name)).status()?.success());
        }
        let path = path.to_owned();
        std::thread::spawn(move || {
            let Ok(data) = fs::read(path.join("inblob")) else { return };
            let generation = format!("{}\n", 7 + steps);
            let written = fs::write(path.join("generation"), generation);
            assert!(written.is_ok());
            // The reader may have given up.
            let _ = fs::write(path.join("outblob"), answer(&data));
        });
        Ok(())
    }

    fn echo(data: &[u8]) -> Vec<u8> {
        [b"quote over ", data].concat()
    }

    #[test]
    fn the_quote_is_over_what_was_asked_for() {
        let kernel = Kernel::new("good");
        let tsm = ConfigfsTsm::at(kernel.0.clone(), |path| serve(path, PROVIDER, 1, echo));
        assert_eq!(tsm.quote(&[9; 64]).expect("a quote"), echo(&[9; 64]));
        assert_eq!(tsm.quote(&[8; 64]).expect("another"), echo(&[8; 64]));
        // A process of the same number, as every container has, finds what this one left.
        let next = ConfigfsTsm::at(kernel.0.clone(), |path| serve(path, PROVIDER, 1, echo));
        assert_eq!(next.quote(&[7; 64]).expect("past the left-overs"), echo(&[7; 64]));
    }

    #[test]
    fn an_empty_answer_names_the_quote_service_and_another_provider_is_refused() {
        let kernel = Kernel::new("empty");
        let tsm =
            ConfigfsTsm::at(kernel.0.clone(), |path| serve(path, PROVIDER, 1, |_| Vec::new()));
        let error = tsm.quote(&[9; 64]).expect_err("empty").to_string();
        assert!(error.contains("quote generation service"), "{error}");
        let kernel = Kernel::new("other");
        let tsm = ConfigfsTsm::at(kernel.0.clone(), |path| {
            fs::create_dir(path)?;
            fs::write(path.join("provider"), "sev_guest\n")
        });
        let error = tsm.quote(&[9; 64]).expect_err("no TD").to_string();
        assert!(error.contains("sev_guest"), "{error}");
    }

    #[test]
    fn a_request_that_somebody_else_used_is_made_again_and_given_up_in_the_end() {
        let kernel = Kernel::new("raced");
        let tsm = ConfigfsTsm::at(kernel.0.clone(), |path| {
            // The first two requests are raced.
            let raced = ["-0", "-1"].iter().any(|end| path.to_string_lossy().ends_with(end));
            serve(path, PROVIDER, if raced { 2 } else { 1 }, echo)
        });
        assert_eq!(tsm.quote(&[9; 64]).expect("the third"), echo(&[9; 64]));
        let kernel = Kernel::new("busy");
        let tsm = ConfigfsTsm::at(kernel.0.clone(), |_| Err(io::ErrorKind::ResourceBusy.into()));
        let error = tsm.quote(&[9; 64]).expect_err("busy for ever").to_string();
        assert!(error.contains("another quote"), "{error}");
    }
}
