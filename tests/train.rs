//! A job's result depends on nothing but the job: over a thousand seeds of delay, split, drop,
//! disconnect and death.

use hfl::job::Job;
use hfl::job::evaluation::Evaluation;

use crate::cluster::{Cluster, Faults, QUIET, STEPS, WORKERS, job};

/// Seeds of the deterministic simulation.
const SEEDS: u64 = 1000;

#[test]
fn final_parameters_are_the_same_for_a_thousand_seeds_of_faults() {
    let calm = Cluster::new(0, QUIET).run();
    assert_eq!(calm.evaluations.keys().copied().collect::<Vec<u64>>(), [2, 4]);
    let (mut deaths, mut broken) = (0, 0);
    for seed in 1..=SEEDS {
        let faults = Faults {
            delay_ms_max: [1, 5, 40][seed as usize % 3],
            broken_per_mille: [0, 3, 10][seed as usize / 3 % 3],
            deaths_per_mille: [0, 500, 2000][seed as usize / 9 % 3],
            late_ms: 0,
        };
        let end = Cluster::new(seed, faults).run();
        assert_eq!(end.params, calm.params, "seed {seed}, {faults:?}");
        let found = (&end.evaluations, end.found);
        assert_eq!(found, (&calm.evaluations, calm.found), "seed {seed}, {faults:?}");
        deaths += end.deaths;
        broken += end.broken;
    }
    println!("{SEEDS} seeds: {deaths} deaths, {broken} broken connections");
    // A simulation without faults would prove nothing.
    assert!(deaths > 100 && broken > 100, "{deaths} deaths, {broken} broken connections");
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
    for seed in 1..=100 {
        let faults = Faults {
            delay_ms_max: [1, 40][seed as usize % 2],
            broken_per_mille: 5,
            deaths_per_mille: 1000,
            late_ms: 0,
        };
        let end = Cluster::of(patient(), seed, faults).run();
        assert_eq!((end.step, end.found), (calm.step, calm.found), "seed {seed}");
        assert_eq!(end.params, calm.params, "seed {seed}");
    }
}
