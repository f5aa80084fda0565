//! What workers weigh, and what their evaluations lead to.

use super::*;
use crate::job::schedule::Schedule;
use crate::job::{Algorithm, Augment, Order};
use crate::model::params::Kind;

fn server(weighting: Weighting, samples: [u64; 2]) -> ParameterServer {
    let job = Job {
        conv: Algorithm::Direct,
        batch_size: 16,
        epochs: 1,
        schedule: Schedule::Constant { rate: 0.1 },
        weight_decay: 0.0,
        augment: Augment::None,
        order: Order::Sequential,
        weighting,
        ..Job::default()
    };
    let layout = Layout::new([("weight".into(), vec![4], Kind::Weight)]);
    let mut state = State::new(vec![0.0; 4], 4, 2);
    let member = |samples| Some(Member { samples, batches: job.batches(samples), data: None });
    state.members = samples.map(member).into();
    ParameterServer::new(job, layout, state, 4, Pool::new(1), Isa::detect())
}

#[test]
fn in_an_epoch_each_sample_weighs_alike() {
    // 200 images make 13 batches, 17 make one of 17: a batch's samples would give the small site 17 of 33.
    let uneven = server(Weighting::Data, [200, 17]);
    assert_eq!([uneven.weight(0, 16), uneven.weight(1, 17)], [200.0, 17.0]);
    let by_batch = server(Weighting::Batch, [200, 17]);
    assert_eq!([by_batch.weight(0, 16), by_batch.weight(1, 17)], [16.0, 17.0]);
    let even = server(Weighting::Data, [200, 200]);
    assert_eq!([even.weight(0, 16), even.weight(1, 16)], [16.0, 16.0]);
}
