//! Where a volume's passphrase comes from: a file, a descriptor, a pipe or a prompt; never argv or environment.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use luks::Passphrase;
use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use crate::failure::{Doing, Failure};

/// What the options say.
#[derive(Clone, Debug, Default)]
pub struct KeySource {
    /// A key file, all of whose bytes count; `-` is stdin.
    pub file: Option<PathBuf>,
    /// An open file descriptor, read like a key file.
    pub descriptor: Option<u32>,
}

impl KeySource {
    /// Reads the passphrase: of the named file or descriptor, else a line of stdin, asked for on a
    /// terminal.
    ///
    /// # Errors
    /// When it cannot be read, is empty or too long.
    pub fn read(&self) -> Result<Passphrase, Failure> {
        match self.named()? {
            Some(passphrase) => Ok(passphrase),
            None if isatty(io::stdin()) => prompt("Passphrase: "),
            None => Passphrase::from_line(io::stdin().lock()).map_err(|error| {
                Failure::new(format!("no key was given, and there is none on stdin: {error}"))
                    .hint("--key-file FILE, --key-fd N, or the passphrase as a line on stdin")
            }),
        }
    }

    /// Reads a passphrase that is to be set: a terminal asks twice.
    ///
    /// # Errors
    /// As [`KeySource::read`]; when the two differ.
    pub fn read_new(&self) -> Result<Passphrase, Failure> {
        if self.file.is_some() || self.descriptor.is_some() || !isatty(io::stdin()) {
            return self.read();
        }
        let first = prompt("New passphrase: ")?;
        match first == prompt("Again: ")? {
            true => Ok(first),
            false => Err(Failure::new("the two passphrases differ")),
        }
    }

    fn named(&self) -> Result<Option<Passphrase>, Failure> {
        let path = match (&self.file, self.descriptor) {
            (Some(_), Some(_)) => {
                return Err(Failure::usage("--key-file and --key-fd exclude each other"));
            }
            (Some(path), None) if path.as_os_str() == "-" => {
                let read = Passphrase::from_file(io::stdin().lock());
                return read.doing("key on stdin").map(Some);
            }
            (Some(path), None) => path.clone(),
            (None, Some(number)) => PathBuf::from(format!("/proc/self/fd/{number}")),
            (None, None) => return Ok(None),
        };
        let what = format!("key file {}", path.display());
        let file = File::open(&path).doing(&what)?;
        Passphrase::from_file(file).doing(&what).map(Some)
    }
}

/// Asks on the terminal, without showing what is typed.
fn prompt(question: &str) -> Result<Passphrase, Failure> {
    let mut stderr = io::stderr();
    write!(stderr, "{question}").and_then(|()| stderr.flush()).doing("terminal")?;
    let stdin = io::stdin();
    let quiet = Quiet::new(&stdin);
    let read = Passphrase::from_line(stdin.lock());
    drop(quiet);
    writeln!(stderr).doing("terminal")?;
    read.doing("passphrase")
}

/// A terminal that does not echo, until it is dropped.
struct Quiet<'a, T: AsFd> {
    terminal: &'a T,
    before: Option<Termios>,
}

impl<'a, T: AsFd> Quiet<'a, T> {
    fn new(terminal: &'a T) -> Self {
        let before = tcgetattr(terminal).ok();
        if let Some(mut modes) = before.clone() {
            modes.local_modes.remove(LocalModes::ECHO);
            // A terminal that cannot hide its echo is still the one that was asked to be used.
            let _ = tcsetattr(terminal, OptionalActions::Flush, &modes);
        }
        Self { terminal, before }
    }
}

impl<T: AsFd> Drop for Quiet<'_, T> {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(self.terminal, OptionalActions::Flush, before);
        }
    }
}
