//! What a crash can leave of a recording.

use crate::Random;
use crate::disk::{Event, Layered, Write};

/// Up to this many writes between two barriers, every subset is played.
const SUBSETS_MAX: usize = 10;
/// Up to this many, with each write of each subset torn at every sector.
const TORN_SUBSETS_MAX: usize = 3;

/// The disk at every moment of a recording at which a process can be killed: before, after and within each write.
pub(crate) fn kills(recording: &Layered, mut each: impl FnMut(&Layered, u64)) {
    let mut state = recording.at_start();
    let mut saved = 0;
    for event in recording.events().iter() {
        match event {
            Event::Barrier => {}
            Event::Saved(step) => saved = *step,
            Event::Write(sectors) => {
                for &(sector, bytes) in sectors {
                    each(&state, saved);
                    state.put(sector, bytes);
                }
                state = state.settled();
            }
        }
    }
    each(&state, saved);
}

/// The disk with every subset of the writes since a barrier, for each barrier; where the writes are few, also with
/// one of them torn at every sector. Where they are many, with all but one, and with one alone.
pub(crate) fn all_losses(recording: &Layered, mut each: impl FnMut(&Layered, u64)) {
    windows(recording, |durable, writes, saved| {
        let count = writes.len();
        let all = (1u64 << count.min(63)) - 1;
        let subsets: Vec<u64> = match count {
            0..=SUBSETS_MAX => (0..=all).collect(),
            _ => (0..count).flat_map(|at| [1 << at, all & !(1 << at)]).chain([0, all]).collect(),
        };
        for subset in subsets {
            let kept = |at: usize| subset >> at & 1 == 1;
            let torn = |at: usize| kept(at) && count <= TORN_SUBSETS_MAX;
            let cuts = (0..count)
                .filter(|&at| torn(at))
                .flat_map(|at| (1..writes[at].len()).map(move |len| (at, len)));
            for cut in [(count, 0)].into_iter().chain(cuts) {
                let state = durable.copy();
                for at in (0..count).filter(|&at| kept(at)) {
                    let len = if at == cut.0 { cut.1 } else { writes[at].len() };
                    writes[at][..len].iter().for_each(|&(sector, bytes)| state.put(sector, bytes));
                }
                each(&state, saved);
            }
        }
    });
}

/// The disk with any of the sectors since a barrier, `count` times.
pub(crate) fn random_losses(
    recording: &Layered,
    count: usize,
    random: &mut Random,
    mut each: impl FnMut(&Layered, u64, &mut Random),
) {
    let mut barriers = 0;
    windows(recording, |_, _, _| barriers += 1);
    let mut chosen = vec![0; barriers];
    (0..count).for_each(|_| chosen[random.below(barriers)] += 1);
    let mut chosen = chosen.into_iter();
    windows(recording, |durable, writes, saved| {
        for _ in 0..chosen.next().expect("as many as before") {
            let state = durable.copy();
            // From hardly anything kept to hardly anything lost, sector by sector.
            let [begun, odds] = [random.below(writes.len() + 1), random.below(17)];
            for &(sector, bytes) in writes[..begun].iter().copied().flatten() {
                if random.below(16) < odds {
                    state.put(sector, bytes);
                }
            }
            each(&state, saved, random);
        }
    });
}

/// For each barrier, and the end: the disk at the one before, the writes since, and what was saved by then.
fn windows(recording: &Layered, mut each: impl FnMut(&Layered, &[&Write], u64)) {
    let mut durable = recording.at_start();
    let mut saved = 0;
    let mut writes = Vec::new();
    for event in recording.events().iter().chain([&Event::Barrier]) {
        match event {
            Event::Saved(step) => saved = *step,
            Event::Write(write) => writes.push(write),
            Event::Barrier => {
                each(&durable, &writes, saved);
                for &(sector, bytes) in writes.drain(..).flatten() {
                    durable.put(sector, bytes);
                }
                durable = durable.settled();
            }
        }
    }
}
