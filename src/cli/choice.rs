//! Choices among a few words.

use std::str::FromStr;

use kernels::Isa;

/// The shape of a schedule, before its rate is known.
#[derive(Clone, Copy, Debug)]
pub(super) enum ScheduleKind {
    Constant,
    Cosine,
}

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

impl FromStr for IsaChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self(Isa::detect()));
        }
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        let unknown = || format!("this CPU has auto, {}", names.join(", "));
        Isa::named(text).map(Self).ok_or_else(unknown)
    }
}
