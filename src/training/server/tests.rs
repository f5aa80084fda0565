//! What workers weigh, and what their evaluations lead to.

use super::*;
use crate::job::norm::Norm;
use crate::job::schedule::Schedule;
use crate::job::{Algorithm, Augment, Order, Weighting};
use crate::model::params::Kind;
use crate::training::update::weight;

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
    let member = |samples| {
        let batches = job.batches(samples);
        Some(Member { samples, batches, data: None, classes: Vec::new() })
    };
    state.members = samples.map(member).into();
    ParameterServer::new(job, layout, state, 4, Pool::new(1), Isa::detect())
}

fn weights(server: &ParameterServer, samples: [u32; 2]) -> [f32; 2] {
    let of = |worker: u16| {
        weight(&server.job, &server.state.members, worker, samples[usize::from(worker)])
    };
    [of(0), of(1)]
}

#[test]
fn in_an_epoch_each_sample_weighs_alike() {
    // 200 images make 13 batches, 17 make one of 17: a batch's samples would give the small site 17 of 33.
    let uneven = server(Weighting::Data, [200, 17]);
    assert_eq!(weights(&uneven, [16, 17]), [200.0, 17.0]);
    let by_batch = server(Weighting::Batch, [200, 17]);
    assert_eq!(weights(&by_batch, [16, 17]), [16.0, 17.0]);
    let even = server(Weighting::Data, [200, 200]);
    assert_eq!(weights(&even, [16, 16]), [16.0, 16.0]);
}

#[test]
fn classes_that_differ_are_told_once_at_the_start_with_what_to_choose() {
    let told = |norm: Norm, step: u64, odd: u64| {
        let mut server = server(Weighting::Data, [100, 100]);
        server.job.norm = norm;
        server.state.step = step;
        for (worker, member) in (0..).zip(server.state.members.iter_mut().flatten()) {
            let count = |class: u64| if class % 2 == worker { 20 - odd } else { odd };
            member.classes = (0..10).map(count).collect();
        }
        server.judge_classes();
        server.judge_classes();
        server.take_notes()
    };
    let advice = told(Norm::Batch, 0, 0);
    assert!(advice.len() == 1 && advice[0].to_string().contains("--norm group"), "{advice:?}");
    assert!(matches!(advice[0], Note::Advised(_)));
    assert!(told(Norm::Group, 0, 0).is_empty(), "it was chosen");
    assert!(told(Norm::Batch, 7, 0).is_empty(), "it goes on");
    assert!(told(Norm::Batch, 0, 10).is_empty(), "they are alike");
}
