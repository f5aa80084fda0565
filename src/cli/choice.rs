//! Choices among a few words.

use std::path::PathBuf;
use std::str::FromStr;

use kernels::{Isa, NoTiles};
use protocol::unhex;

use crate::failure::{Doing, Failure};
use crate::files::read_bounded;
use crate::job::classes::ClassNames;

/// The shape of a schedule, before its rate is known.
#[derive(Clone, Copy, Debug)]
pub(super) enum ScheduleKind {
    Constant,
    Cosine,
}

/// What normalises, before it is known from when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormKind {
    Batch,
    Frozen,
    Group,
}

/// What ps0 writes for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReportKind {
    Html,
    None,
}

/// Where the names of a job's classes come from.
#[derive(Clone, Debug)]
pub(super) enum ClassSource {
    Cifar10,
    Cifar100,
    File(PathBuf),
    /// Classes of which only the number is known.
    Number(usize),
}

/// SHA-256 of a container image.
#[derive(Clone, Copy, Debug)]
pub(super) struct ImageDigest(pub(super) [u8; 32]);

/// An instruction-set tier that this CPU has.
#[derive(Clone, Copy, Debug)]
pub(super) struct IsaChoice(pub(super) Isa);

impl FromStr for ScheduleKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "constant" => Ok(Self::Constant),
            "cosine" => Ok(Self::Cosine),
            _ => Err("expected cosine or constant".into()),
        }
    }
}

impl FromStr for NormKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "batch" => Ok(Self::Batch),
            "frozen" => Ok(Self::Frozen),
            "group" => Ok(Self::Group),
            _ => Err("expected batch, frozen or group".into()),
        }
    }
}

impl FromStr for ReportKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "html" => Ok(Self::Html),
            "none" => Ok(Self::None),
            _ => Err("expected html or none".into()),
        }
    }
}

impl FromStr for ClassSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "cifar-10" => Self::Cifar10,
            "cifar-100" => Self::Cifar100,
            text => text.parse().map_or_else(|_| Self::File(text.into()), Self::Number),
        })
    }
}

impl ClassSource {
    /// The names.
    pub(super) fn names(&self) -> Result<ClassNames, Failure> {
        match self {
            Self::Cifar10 => Ok(ClassNames::default()),
            Self::Cifar100 => Ok(ClassNames::cifar100()),
            Self::Number(count) => ClassNames::numbered(*count)
                .map_err(|why| Failure::usage(format!("--classes: {why}"))),
            Self::File(path) => {
                let what = || format!("--classes {}", path.display());
                let missing = || Failure::new(format!("{}: no such file", what()));
                let bytes = read_bounded(path).doing(what())?.ok_or_else(missing)?;
                let text = String::from_utf8(bytes).doing(what())?;
                ClassNames::new(text.lines().map(str::to_owned).collect()).doing(what())
            }
        }
    }
}

impl FromStr for ImageDigest {
    type Err = String;

    /// Also as manifests name an image by it: `registry.example/hfl@sha256:...`.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.rsplit_once("sha256:").map(|(_, digits)| digits);
        let digest = digits.and_then(unhex).and_then(|bytes| bytes.try_into().ok());
        digest.map(Self).ok_or_else(|| "expected sha256: and 64 digits".into())
    }
}

impl FromStr for IsaChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::auto());
        }
        let unknown = || {
            let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            let here = format!("this CPU has auto, {}", names.join(", "));
            match Isa::tiles_checked() {
                Err(why) if text == "amx" => format!("{why}; {here}"),
                _ => here,
            }
        };
        Isa::named(text).map(Self).ok_or_else(unknown)
    }
}

impl IsaChoice {
    /// The best tier. A CPU whose tiles are wrong runs on its vectors, and whoever owns it has to know.
    pub(super) fn auto() -> Self {
        if let Err(why @ NoTiles::Wrong) = Isa::tiles_checked() {
            eprintln!("hfl: warning: {why}");
        }
        Self(Isa::detect())
    }
}

/// A shell that completes words.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shell {
    Bash,
    Fish,
    Zsh,
}

impl FromStr for Shell {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bash" => Ok(Self::Bash),
            "fish" => Ok(Self::Fish),
            "zsh" => Ok(Self::Zsh),
            _ => Err("expected bash, zsh or fish".into()),
        }
    }
}
