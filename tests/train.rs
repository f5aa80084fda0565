//! A job's result depends on nothing but the job: over a thousand seeds of delay, split, drop,
//! disconnect and death.

use crate::cluster::{Cluster, Faults, QUIET, STEPS, WORKERS};

/// Seeds of the deterministic simulation.
const SEEDS: u64 = 1000;

#[test]
fn final_parameters_are_the_same_for_a_thousand_seeds_of_faults() {
    let calm = Cluster::new(0, QUIET).run();
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
