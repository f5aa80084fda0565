//! A job's result depends on nothing but the job: over a thousand seeds of delay, split, drop,
//! disconnect and death.

use std::ops::RangeInclusive;
use std::sync::Arc;

use hfl::job::evaluation::Evaluation;
use hfl::job::recipe::Recipe;
use hfl::job::state::State;
use hfl::job::{Job, Outer, Quorum, Wire};
use hfl::training::contradiction::Kind;

use crate::cluster::{Cluster, STEPS, WORKERS};
use crate::hostile::{End, Faults, QUIET};
use crate::participants::{job, table};
use crate::replayed::replayed;

/// Seeds of the deterministic simulation, unless `SEEDS=FIRST-LAST` says others: more of them, or one that failed.
fn seeds(count: u64) -> RangeInclusive<u64> {
    let Ok(text) = std::env::var("SEEDS") else { return 1..=count };
    let (first, last) = text.split_once('-').expect("SEEDS=FIRST-LAST");
    first.parse().expect("a number")..=last.parse().expect("a number")
}

/// How to see it again.
fn repeat(seed: u64, test: &str) -> String {
    format!("repeat it: SEEDS={seed}-{seed} cargo test --locked --test main train::{test}")
}

fn faults(seed: u64) -> Faults {
    Faults {
        delay_ms_max: [1, 5, 40][seed as usize % 3],
        broken_per_mille: [0, 3, 10][seed as usize / 3 % 3],
        deaths_per_mille: [0, 500, 2000][seed as usize / 9 % 3],
        ..QUIET
    }
}

#[test]
fn final_parameters_are_the_same_for_a_thousand_seeds_of_faults() {
    let calm = Cluster::new(0, QUIET).run();
    assert_eq!(calm.evaluations.keys().copied().collect::<Vec<u64>>(), [2, 4]);
    // Two of four rounds are followed by an evaluation, before which nothing is sent early.
    let [early, late] = calm.sent;
    assert!(early > 0 && late > early, "{early} cells were sent early, {late} late");
    let (mut deaths, mut broken, mut ahead) = (0, 0, [0; 2]);
    for seed in seeds(1000) {
        let faults = faults(seed);
        let end = Cluster::new(seed, faults).run();
        let again = repeat(seed, "final_parameters_are_the_same_for_a_thousand_seeds_of_faults");
        assert_eq!(end.params, calm.params, "{faults:?}; {again}");
        let found = (&end.evaluations, end.found);
        assert_eq!(found, (&calm.evaluations, calm.found), "{faults:?}; {again}");
        deaths += end.deaths;
        broken += end.broken;
        ahead = [0, 1].map(|of| ahead[of] + end.ahead[of]);
    }
    println!("{deaths} deaths, {broken} broken connections");
    println!("{} passes began early, {} of them were given up", ahead[0] + ahead[1], ahead[1]);
    // A simulation without faults would prove nothing.
    if std::env::var_os("SEEDS").is_none() {
        assert!(deaths > 100 && broken > 100, "{deaths} deaths, {broken} broken connections");
        assert!(ahead[0] > 100 && ahead[1] > 5, "{ahead:?} passes began early");
    }
}

#[test]
fn a_server_that_swaps_its_checkpoint_or_tells_another_history_is_left_by_every_worker() {
    let calm = Cluster::new(0, QUIET).run();
    assert_eq!(calm.contradictions, [], "the truth is no contradiction");
    // Other parameters under the receipt of the true ones, then under one made to fit.
    let swaps: fn(&mut State) = |state| Arc::make_mut(&mut state.params)[0] += 1.0;
    let retells: fn(&mut State) = |state| {
        Arc::make_mut(&mut state.params)[0] += 1.0;
        state.receipt = None;
    };
    let drops: fn(&mut State) = |state| {
        let receipt = state.receipt.as_mut().expect("a round was made");
        receipt.parts[1].share = None;
    };
    for (seed, lie) in [swaps, retells, drops].into_iter().enumerate() {
        let end = Cluster::new(1, Faults { lie: Some(lie), ..QUIET }).run();
        assert_eq!(end.contradictions.len(), usize::from(WORKERS), "lie {seed}");
        let is_swap = |kind: &Kind| matches!(kind, Kind::Parameters(_));
        let is_retold = |kind: &Kind| matches!(kind, Kind::TwoHeads(_));
        let kinds = end.contradictions.iter();
        assert!(if seed == 0 { kinds.clone().all(is_swap) } else { kinds.clone().all(is_retold) });
    }
}

/// A connection whose other end is gone without a word: the worker notices silence and comes again, its place is held
/// until the server's system gives the first one up.
#[test]
fn half_open_connections_are_noticed_and_change_nothing() {
    let calm = Cluster::new(0, QUIET).run();
    let mut silent = 0;
    for seed in seeds(40) {
        let faults = Faults { silent_per_mille: 1, ..faults(seed) };
        let end = Cluster::new(seed, faults).run();
        let again = repeat(seed, "half_open_connections_are_noticed_and_change_nothing");
        assert_eq!(end.params, calm.params, "{faults:?}; {again}");
        silent += end.silent;
    }
    println!("{silent} connections fell silent");
    if std::env::var_os("SEEDS").is_none() {
        assert!(silent > 10, "{silent} connections fell silent");
    }
}

/// Jobs whose exchange differs from the usual one.
fn exchanges() -> [Job; 5] {
    let outer = Outer { rate: 0.7, momentum: 0.9 };
    [
        Job { wire: Wire::Bf16, ..job() },
        Job { wire: Wire::Int8, ..job() },
        Job { local_steps: Some(3), ..job() },
        Job { local_steps: Some(2), wire: Wire::Bf16, outer, ..job() },
        Job { local_steps: Some(2), wire: Wire::Int8, ..job() },
    ]
}

/// What a dead worker carried over is lost, and the log says so: to compute its rounds again comes to the same bits.
/// Where nothing is carried over, they are those of the undisturbed run.
#[test]
fn every_exchange_comes_to_what_its_rounds_say() {
    let calm = exchanges().map(|job| Cluster::of(job, 0, QUIET).run());
    for (index, end) in calm.iter().enumerate() {
        let others = calm.iter().filter(|other| other.params == end.params).count();
        assert_eq!(others, 1, "job {index} is like another");
    }
    let (mut deaths, mut lost) = (0, 0);
    for seed in seeds(500) {
        let (index, faults) = (seed as usize % calm.len(), faults(seed / calm.len() as u64));
        let job = exchanges()[index].clone();
        let again = repeat(seed, "every_exchange_comes_to_what_its_rounds_say");
        let end = Cluster::of(job.clone(), seed, faults).run();
        assert_eq!(end.params, replayed(&job, &end.rounds), "job {index}, {faults:?}; {again}");
        if end.rounds == calm[index].rounds {
            assert_eq!(end.params, calm[index].params, "job {index}, {faults:?}; {again}");
        } else {
            assert_eq!(job.wire, Wire::Int8, "job {index} carries nothing over; {again}");
            assert!(end.deaths > 0, "nobody died; {again}");
            lost += 1;
        }
        deaths += end.deaths;
    }
    println!("{deaths} deaths, {lost} runs lost what was carried over");
    if std::env::var_os("SEEDS").is_none() {
        assert!(deaths > 50 && lost > 5, "{deaths} deaths, {lost} runs lost what was carried over");
    }
}

/// Averages are made where parameters are, and told before them: neither deaths nor delays change what comes of that.
#[test]
fn averages_and_what_is_found_with_them_are_the_same_whatever_happens() {
    let recipe = Recipe { ema: 0.9, ..Recipe::default() };
    let local = Job { local_steps: Some(3), wire: Wire::Bf16, recipe, ..job() };
    let jobs = [Job { recipe, ..job() }, local];
    let calm = jobs.clone().map(|job| Cluster::of(job, 0, QUIET).run());
    let mut deaths = 0;
    for seed in seeds(200) {
        let (index, faults) = (seed as usize % jobs.len(), faults(seed / jobs.len() as u64));
        let end = Cluster::of(jobs[index].clone(), seed, faults).run();
        let test = "averages_and_what_is_found_with_them_are_the_same_whatever_happens";
        let again = repeat(seed, test);
        assert_eq!(end.params, calm[index].params, "{faults:?}; {again}");
        assert_eq!(end.params, replayed(&jobs[index], &end.rounds), "{faults:?}; {again}");
        let found = (&end.evaluations, end.found);
        assert_eq!(found, (&calm[index].evaluations, calm[index].found), "{faults:?}; {again}");
        deaths += end.deaths;
    }
    assert!(deaths > 20 || std::env::var_os("SEEDS").is_some(), "{deaths} deaths");
}

#[test]
fn averages_are_what_is_evaluated_and_change_nothing_else() {
    let recipe = Recipe { ema: 0.9, ..Recipe::default() };
    let [plain, averaged] =
        [job(), Job { recipe, ..job() }].map(|job| Cluster::of(job, 0, QUIET).run());
    let (params, averages) = averaged.params.split_at(plain.params.len());
    assert!(params == plain.params && averages != params);
    let found = |bits: &[u32]| {
        let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        let tables = (0..usize::from(WORKERS)).flat_map(|worker| {
            let counts = table(worker, &values).into_iter().enumerate();
            counts.map(|(at, count)| [if at / 10 == at % 10 { count } else { 0 }, count])
        });
        tables
            .fold([0, 0], |[right, all], [hit, one]| [right + u64::from(hit), all + u64::from(one)])
    };
    let [of_averages, of_params] = [averages, params].map(found);
    assert_ne!(of_averages, of_params);
    assert_eq!((averaged.evaluations[&STEPS], plain.evaluations[&STEPS]), (of_averages, of_params));
}

/// Workers without worker N in some round.
fn rounds_without(end: &End, worker: u16) -> u64 {
    let runs = end.rounds.runs().iter();
    let without = runs.filter(|run| run.workers.iter().all(|part| part.worker != worker));
    without.map(|run| run.rounds).sum()
}

/// With a quorum, who is late is left out of a round and takes part in a later one; what comes of it is what the log
/// says, whatever the network does.
#[test]
fn with_a_quorum_rounds_close_without_who_is_late_and_the_log_repeats_them() {
    let quorum = Some(Quorum { workers: 2, seconds: 1 });
    let (mut left_out, mut returned) = (0, 0);
    for seed in seeds(300) {
        let base = exchanges()[seed as usize % exchanges().len()].clone();
        let job = Job { quorum, ..base };
        let late_ms = [0, 1500, 900, 5000][seed as usize % 4];
        let faults = Faults { late_ms, late_every: 1 + seed / 4 % 2 * 3, ..faults(seed / 8) };
        let again =
            repeat(seed, "with_a_quorum_rounds_close_without_who_is_late_and_the_log_repeats_them");
        let end = Cluster::of(job.clone(), seed, faults).run();
        assert_eq!(end.params, replayed(&job, &end.rounds), "{faults:?}; {again}");
        left_out += rounds_without(&end, 1);
        returned += end.notes.iter().filter(|note| note.contains("worker1: takes part")).count();
    }
    println!("{left_out} rounds without the late one, which returned {returned} times");
    if std::env::var_os("SEEDS").is_none() {
        assert!(left_out > 100 && returned > 20, "{left_out} left out, {returned} returned");
    }
}

#[test]
fn what_is_not_finite_is_left_out_and_who_leaves_for_good_is_named_once() {
    let quorum = Some(Quorum { workers: 2, seconds: 1 });
    for base in exchanges() {
        let job = Job { quorum, steps: Some(STEPS), ..base };
        let bad = Faults { bad_step: Some(0), ..QUIET };
        let end = Cluster::of(job.clone(), 3, bad).run();
        assert_eq!(end.params, replayed(&job, &end.rounds));
        assert!(rounds_without(&end, 2) > 0, "{:?}", end.notes);
        let named = |end: &End, what: &str| end.notes.iter().filter(|n| n.contains(what)).count();
        assert_eq!(named(&end, "step 0: what worker2 sends is not finite"), 1, "{:?}", end.notes);
        let step = u64::from(job.local_steps.unwrap_or(1));
        let gone = Faults { leaves_step: Some(step), ..QUIET };
        let end = Cluster::of(job.clone(), 3, gone).run();
        assert_eq!(end.params, replayed(&job, &end.rounds));
        assert_eq!(named(&end, "worker2: left out since step"), 1, "{:?}", end.notes);
    }
}

#[test]
fn who_is_late_is_waited_for_and_nobody_computes_twice() {
    let calm = Cluster::new(0, QUIET).run();
    for late_ms in [100_000, 140_000] {
        let end = Cluster::new(0, Faults { late_ms, ..QUIET }).run();
        assert_eq!(end.params, calm.params);
        assert_eq!(end.connections, usize::from(WORKERS), "a connection ended, {late_ms} ms late");
        assert_eq!(end.computed, STEPS * u64::from(WORKERS));
    }
}

#[test]
fn a_job_that_gets_no_better_ends_at_the_same_step_whatever_happens() {
    let evaluation = Evaluation { every: 1, patience: Some(2) };
    let patient = || Job { steps: Some(60), evaluation, ..job() };
    let calm = Cluster::of(patient(), 0, QUIET).run();
    assert!(calm.step < 60 && calm.step == calm.found.last, "{calm:?}");
    assert_eq!((calm.found.since, calm.found.best), (2, calm.step - 4));
    let most = calm.evaluations.values().map(|[right, all]| *right as f64 / *all as f64);
    let [right, all] = calm.found.counts;
    assert_eq!(most.fold(0.0, f64::max), right as f64 / all as f64);
    for seed in seeds(100) {
        let test = "a_job_that_gets_no_better_ends_at_the_same_step_whatever_happens";
        let again = repeat(seed, test);
        let faults = Faults {
            delay_ms_max: [1, 40][seed as usize % 2],
            broken_per_mille: 5,
            deaths_per_mille: 1000,
            ..QUIET
        };
        let end = Cluster::of(patient(), seed, faults).run();
        assert_eq!((end.step, end.found), (calm.step, calm.found), "{again}");
        assert_eq!(end.params, calm.params, "{again}");
    }
}
