//! What workers weigh, and what their evaluations lead to.

use std::sync::Arc;
use std::time::Duration;

use protocol::{Config, Policy, SimPlatform, Trust, Verifier};

use super::link::Link;
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

#[test]
fn nobody_begins_anew_where_nothing_is_carried_over() {
    let announce = |fresh| {
        let mut server = server(Weighting::Data, [100, 100]);
        server.state.steps = Some(10);
        server.announce(0, 16, 1.0, fresh)
    };
    assert_eq!(announce(false), Ok(()));
    assert_eq!(announce(true), Err(Refusal::Protocol));
}

/// A round with a quorum closes without who is silent, and everybody is sent what came of it.
#[test]
fn who_owes_fresh_evidence_is_sent_no_parameters() {
    let now = || 1_800_000_000;
    let platform = Arc::new(SimPlatform::new(now()));
    let policy = Policy::same_as(platform.report());
    let every = Duration::from_secs(60);
    let party = |role| {
        let verifier = Verifier { trust: Trust::Simulated, policy: policy.clone() };
        let mut config = Config::new(role, platform.clone(), verifier, now).expect("a config");
        config.reattest = Some(every);
        Arc::new(config)
    };
    let client = Session::client(party(Role::Worker(0)), "ps0", Duration::ZERO);
    let ours = Session::server(party(Role::ParameterServer(0)), [9; 32], Duration::ZERO);
    let (mut client, mut ours) = (client.expect("a client"), ours.expect("a server"));
    let carry = |from: &mut Session, to: &mut Session| {
        let mut bytes = Vec::new();
        from.output(&mut bytes).expect("memory");
        to.receive(&bytes).expect("TLS");
        while to.next_event().expect("honest").is_some() {}
    };
    for _ in 0..6 {
        carry(&mut client, &mut ours);
        carry(&mut ours, &mut client);
    }
    assert!(ours.is_open() && client.is_open());
    let mut server = server(Weighting::Data, [16, 16]);
    server.state.steps = Some(2);
    let mut link = Link::new(0, None);
    link.place = Place::Held;
    link.begin_sending();
    server.links.insert(1, link);
    ours.handle_timeout(Duration::ZERO).expect("open");
    ours.handle_timeout(2 * every).expect("asked");
    let mut asked = Vec::new();
    ours.output(&mut asked).expect("memory");
    assert!(ours.owes_evidence());
    server.send(1, &mut ours).expect("open");
    server.send(1, &mut ours).expect("open");
    let link = &server.links[&1];
    assert!(link.is_sending && link.sent.is_empty(), "nothing went out");
    // It answers, and is sent all of it.
    client.receive(&asked).expect("TLS");
    assert!(client.next_event().expect("honest").is_none());
    carry(&mut client, &mut ours);
    assert!(!ours.owes_evidence() && ours.attested() == 2);
    carry(&mut ours, &mut client);
    server.send(1, &mut ours).expect("open");
    assert!(!server.links[&1].is_sending);
}
