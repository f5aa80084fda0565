//! Which tier of instructions a format runs on, and in words why no better one does.

use kernels::{Bf16, Isa};

use crate::job::Precision;

/// The tier that does the products of a format.
pub(crate) fn of(isa: Isa, precision: Precision) -> Isa {
    match precision {
        Precision::Fp32 => isa.of::<f32>(),
        Precision::Bf16 => isa.of::<Bf16>(),
    }
}

/// Why not tiles; nothing where they are used.
pub(crate) fn why_no_better(isa: Isa, precision: Precision) -> Option<String> {
    let best = of(Isa::detect(), precision);
    if isa.name() != best.name() {
        return Some(format!("--isa auto takes {}", best.name()));
    }
    match (Isa::tiles_checked(), precision) {
        (Err(why), _) => Some(format!("no amx: {why}")),
        (Ok(()), Precision::Fp32) => Some("amx multiplies bf16 only".into()),
        (Ok(()), Precision::Bf16) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_named_and_it_is_said_why_there_is_no_better_one() {
        let best = Isa::detect();
        let single = of(best, Precision::Fp32);
        assert!(!single.has_tiles());
        let why = why_no_better(single, Precision::Fp32).expect("tiles have no f32");
        assert!(why.contains("amx"), "{why}");
        let portable = why_no_better(Isa::Portable, Precision::Fp32);
        if single != Isa::Portable {
            assert_eq!(portable, Some(format!("--isa auto takes {}", single.name())));
        }
        let half = why_no_better(best, Precision::Bf16);
        match Isa::tiles_checked() {
            Ok(()) => assert_eq!(half, None),
            Err(why) => assert_eq!(half, Some(format!("no amx: {why}"))),
        }
    }
}
