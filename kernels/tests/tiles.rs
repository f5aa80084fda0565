//! AMX: whole passes on the plain model of its tiles, and on the tiles of the CPU where it has them, which give the
//! same bits. Prints which of them ran.

use kernels::{
    Bf16, Conv, Epilogue, Exec, Folded, Identity, Isa, Mask, Normalised, Operand, Pool, Results,
    Rows, Value,
};

use crate::operands::{stored, values, with};

/// The model, and the instructions where this CPU has them.
pub(crate) fn tile_tiers() -> Vec<Isa> {
    match Isa::tiles_checked() {
        Ok(()) => println!("AMX: the CPU's instructions and their model"),
        Err(why) => println!("AMX: the model only: {why}"),
    }
    Isa::model().into_iter().chain(Isa::named("amx")).collect()
}

/// A shape, images, and whether products of it are fast ones where a tier knows such.
type Case = ([usize; 2], [usize; 2], [usize; 2], usize);

/// Full tiles and short ones, rows and pairs that end a tile, pixels without taps, parts of an activation's tile,
/// several panels of a task, several groups.
const CASES: [Case; 8] = [
    ([6, 6], [64, 128], [3, 2], 11),
    ([8, 8], [64, 128], [1, 1], 11),
    ([1, 1], [128, 128], [3, 1], 75),
    ([2, 2], [128, 128], [3, 2], 150),
    ([3, 3], [192, 64], [3, 1], 1),
    ([1, 1], [512, 128], [1, 1], 17),
    ([4, 4], [64, 256], [1, 2], 33),
    ([2, 2], [64, 64], [3, 1], 128),
];

fn conv((side, channels, [kernel, stride], _): Case) -> Conv {
    Conv::new(side, channels, kernel, stride, kernel / 2).expect("shape")
}

#[test]
fn bits_depend_neither_on_threads_nor_on_who_multiplies() {
    for case in CASES {
        let first = passes(case, (1, Isa::model().expect("AVX2")));
        assert!(first.iter().all(|&bits| f32::from_bits(bits).is_finite()), "{case:?}");
        for isa in tile_tiers() {
            for threads in [1, 2, 7] {
                let again = passes(case, (threads, isa));
                assert!(again == first, "{case:?} on {} with {threads} threads", isa.name());
            }
        }
    }
}

/// The bits of all passes, each with what it ends by.
fn passes(case: Case, (threads, isa): (usize, Isa)) -> Vec<u32> {
    let (pool, conv, n) = (Pool::new(threads), conv(case), case.3);
    let (exec, [c, k]) = (Exec::new(&pool, isa), [conv.channels_in, conv.channels_out]);
    let (x, _) = stored::<Bf16>(conv.input_len(n), 1);
    let (dy, _) = stored::<Bf16>(conv.output_len(n), 2);
    let (z, _) = stored::<Bf16>(conv.input_len(n), 4);
    let w = values(conv.weights(), 3);
    let mut sums = vec![0.0; conv.sums_len(n)];
    let mut panels = vec![Bf16::default(); conv.weights()];
    let mut scratch = vec![f32::NAN; conv.scratch_len(n)];
    let mut all = Vec::new();
    let mut keep = |values: &[Bf16], sums: &[f32]| {
        all.extend(values.iter().map(|value| value.widen().to_bits()));
        all.extend(sums.iter().map(|sum| sum.to_bits()));
    };
    let mut y = vec![Bf16::narrow(f32::NAN); conv.output_len(n)];
    let results =
        Results { values: &mut y, sums: &mut sums, scratch: with(&mut panels, &mut scratch) };
    let pivot = vec![0.1; k];
    conv.forward(exec, &*x, &w, results, Epilogue::Measure(&pivot));
    keep(&y, &sums);
    // Rows that are made as they are read, where the shape allows it.
    let fold = Folded { scale: values(c, 5), shift: values(c, 6) };
    let mut made = vec![Bf16::default(); x.len()];
    let operand = Operand::Recompute(&mut made, Rows::Activation(&fold, &z, Identity::Plain(&x)));
    let results =
        Results { values: &mut y, sums: &mut sums, scratch: with(&mut panels, &mut scratch) };
    let other = Folded { scale: values(k, 7), shift: values(k, 8) };
    conv.forward(exec, operand, &w, results, Epilogue::Fold(&other, None, true));
    keep(&y, &[]);
    let (mut dx, mean) = (x.clone(), vec![0.2; c]);
    for add in [false, true] {
        let epilogue = Epilogue::Mask(Mask::Output(&x), Normalised { z: &z, mean: &mean }, None);
        let results =
            Results { values: &mut dx, sums: &mut sums, scratch: with(&mut panels, &mut scratch) };
        conv.backward_input(exec, &*dy, &w, results, add, epilogue);
        keep(&dx, &sums);
    }
    let mut dw = vec![f32::NAN; w.len()];
    conv.backward_weight(exec, &x, &dy, &mut dw, &mut scratch);
    keep(&[], &dw);
    all
}

/// Sums of as many terms as a panel is deep, against the pairs of AVX512-BF16 where there are such: each rounds in
/// its own order.
#[test]
fn tiles_agree_with_pairs_within_the_rounding_of_sums() {
    let Some(pairs) = Isa::available().into_iter().rfind(|isa| isa.has_bf16() && !isa.has_tiles())
    else {
        println!("AMX: nothing to compare with, no AVX512-BF16");
        return;
    };
    for case in CASES {
        let want = passes(case, (2, pairs));
        for isa in tile_tiers() {
            let got = passes(case, (2, isa));
            let (mut error, mut norm) = (0.0, 0.0);
            for (&got, &want) in got.iter().zip(&want) {
                let [got, want] = [got, want].map(|bits| f64::from(f32::from_bits(bits)));
                error += (got - want).powi(2);
                norm += want.powi(2);
            }
            // Results are rounded to 8 bits; one on the other side of zero is masked.
            assert!(error < 4e-3_f64.powi(2) * norm, "{case:?}: {:.1e}", (error / norm).sqrt());
        }
    }
}

#[test]
fn in_f32_a_tier_of_tiles_is_the_one_of_its_vectors() {
    for isa in tile_tiers() {
        let vectors = isa.of::<f32>();
        assert!(!vectors.has_tiles() && vectors != Isa::Portable);
        assert_eq!(Isa::named(vectors.name()), Some(vectors));
        assert_eq!(isa.of::<Bf16>(), isa);
    }
}
