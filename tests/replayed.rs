//! Support: the rounds of a job computed again, one after another, from the log alone: no server, no network, no time.

use hfl::job::Job;
use hfl::model::gradients::Bucket;
use hfl::training::cells::Cells;
use hfl::training::contribution::{Contribution, Tail};
use hfl::training::round::{Added, Announced, Contributed, Round};
use hfl::training::rounds::RoundLog;
use hfl::training::update::{average, update};
use kernels::{Exec, Isa, Pool};

use crate::cluster::{CELL, STEPS, WORKERS};
use crate::participants::{computed, layout, samples, start};

/// The bits of the final parameters, and of the averages after them.
pub(crate) fn replayed(job: &Job, log: &RoundLog) -> Vec<u32> {
    let (layout, isa, pool) = (layout(), Isa::detect(), Pool::new(1));
    let mut state = start(job, &layout);
    let cells = Cells::of_gradients(job, &layout, CELL, isa);
    let mut workers: Vec<Contribution> =
        (0..WORKERS).map(|_| Contribution::new(cells, layout.trained)).collect();
    let mut round = Round::new(cells, WORKERS);
    let mut checks = Vec::new();
    for run in log.runs() {
        for _ in 0..run.rounds {
            for worker in 0..WORKERS {
                if !run.workers.iter().any(|contributed| contributed.worker == worker) {
                    round.leave_out(worker);
                    workers[usize::from(worker)].forget();
                }
            }
            let sent = sent(&Cells::of_parameters(job, &layout, CELL, isa), &state.params);
            for contributed in &run.workers {
                let mut params = sent.clone();
                let index = usize::from(contributed.worker);
                let steps = (state.step, run.steps);
                let (samples, loss, values) =
                    computed(job, index, steps, (&mut params, layout.trained));
                assert_eq!(samples, contributed.samples);
                contribute(&mut round, &mut workers[index], contributed, steps, (loss, &values));
            }
            assert!(round.is_closed());
            let exec = Exec::new(&pool, isa);
            assert!(update(job, &layout, &mut state, &round, exec, STEPS));
            round.reset();
            average(job, &mut state, exec, run.steps);
            state.step += run.steps;
            checks.push(hfl::model::params::check(&state.params));
        }
    }
    assert!(log.rounds().map(|round| round.check).eq(checks.into_iter().map(Some)), "checksums");
    let averages = state.average.iter().flat_map(|all| &**all);
    state.params.iter().chain(averages).map(|param| param.to_bits()).collect()
}

fn contribute(
    round: &mut Round,
    contribution: &mut Contribution,
    &Contributed { worker, samples: of_round, fresh }: &Contributed,
    (step, count): (u64, u64),
    (loss, values): (f32, &[f32]),
) {
    if fresh {
        contribution.forget();
    }
    contribution.begin(step, count);
    let part = Bucket { loss, range: 0..values.len(), params: &mut [], gradients: values };
    contribution.take(of_round, &part);
    let weight = samples(usize::from(worker)) as f32;
    round.announce(worker, Announced { samples: of_round, weight, loss, fresh }).expect("finite");
    for index in (0..values.len().div_ceil(CELL)).rev() {
        let (offset, bytes) = contribution.cell(index, Tail { start: 0, gradients: values });
        assert_eq!(round.add(worker, offset, bytes), Ok(Added::Counted));
    }
}

/// Parameters as they arrive.
fn sent(cells: &Cells, params: &[f32]) -> Vec<f32> {
    let (mut arrived, mut room) = (vec![0.0; params.len()], Vec::new());
    for index in 0..cells.count() {
        let range = cells.range(index).expect("a cell");
        let bytes = cells.encode(&range, &params[range.clone()], &mut room);
        cells.decode(&range, bytes, &mut arrived[range.clone()]);
    }
    arrived
}
