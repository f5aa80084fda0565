//! `Failure`: why a command could not do its work, and what to try.

use std::fmt;

/// What happened, to what, and what to try.
#[derive(Debug)]
pub struct Failure {
    what: String,
    hint: Option<&'static str>,
    is_usage: bool,
}

impl Failure {
    /// A failure; `what` names the thing that it happened to.
    pub fn new(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), hint: None, is_usage: false }
    }

    /// What was asked for makes no sense, whatever the state of the world.
    pub fn usage(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), hint: Some("hfl --help"), is_usage: true }
    }

    /// Whether the arguments are at fault.
    pub fn is_usage(&self) -> bool {
        self.is_usage
    }

    /// Adds what to try.
    pub fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "hfl: {}", self.what)?;
        self.hint.map_or(Ok(()), |hint| write!(f, "\n  try: {hint}"))
    }
}

/// Adds what was being done to an error of any kind.
pub trait Doing<T> {
    /// The value, or a failure that begins with `what`.
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(format!("{what}: {error}")))
    }
}
