//! Two sessions in memory: who gets in, and every way in which one does not.

use super::*;
use crate::identity::certificate::Identity;
use crate::{Attester, OwnerKey, Policy, SimPlatform, Trust, Verifier};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

const NOW: Duration = Duration::ZERO;
const JOB: [u8; 32] = [9; 32];

fn clock() -> u64 {
    1_800_000_000
}

fn verifier() -> Verifier {
    let policy = Policy::same_as(SimPlatform::new(clock()).report());
    Verifier { trust: Trust::Simulated, policy }
}

fn config_on(role: Role, attester: Arc<dyn Attester>) -> Arc<Config> {
    Arc::new(Config::new(role, attester, verifier(), clock).expect("config"))
}

fn config(role: Role) -> Arc<Config> {
    config_on(role, Arc::new(SimPlatform::new(clock())))
}

struct Pair {
    client: Session,
    server: Session,
}

/// How each side ended, if it did.
type Ends = [Option<CloseReason>; 2];

impl Pair {
    fn new(client: Arc<Config>, server: Arc<Config>) -> Self {
        Self {
            client: Session::client(client, "ps0.example", NOW).expect("client"),
            server: Session::server(server, JOB, NOW).expect("server"),
        }
    }

    /// Moves bytes in pieces of `piece` until nothing moves; discards messages.
    fn run(&mut self, piece: usize) -> Ends {
        let mut ends = [None, None];
        loop {
            let [to_server, to_client] = [&mut self.client, &mut self.server].map(|side| {
                let mut bytes = Vec::new();
                side.output(&mut bytes).expect("memory");
                bytes
            });
            if to_server.is_empty() && to_client.is_empty() {
                return ends;
            }
            feed(&mut self.server, &to_server, piece, &mut ends[1]);
            feed(&mut self.client, &to_client, piece, &mut ends[0]);
        }
    }
}

fn feed(side: &mut Session, bytes: &[u8], piece: usize, end: &mut Option<CloseReason>) {
    for bytes in bytes.chunks(piece) {
        if end.is_some() {
            return;
        }
        let result = side.receive(bytes).and_then(|()| {
            while side.next_event()?.is_some() {}
            Ok(())
        });
        *end = result.err();
    }
}

fn rejected(ends: &Ends, side: usize) -> &str {
    match &ends[side] {
        Some(CloseReason::Rejected(rejection)) => rejection.code(),
        other => panic!("side {side} ended with {other:?}"),
    }
}

#[test]
fn two_honest_parties_open_a_session_byte_by_byte_too() {
    for piece in [1, 7, usize::MAX] {
        let mut pair = Pair::new(config(Role::Worker(1)), config(Role::ParameterServer(0)));
        let ends = pair.run(piece);
        assert!(ends.iter().all(Option::is_none), "{ends:?}");
        assert!(pair.client.is_open() && pair.server.is_open());
        assert_eq!(pair.server.peer().expect("peer").role, Role::Worker(1));
        assert_eq!(pair.client.peer().expect("peer").role, Role::ParameterServer(0));
        assert_eq!(pair.client.job(), &JOB);
    }
}

#[test]
fn chunks_and_messages_arrive_in_order_and_a_held_chunk_comes_again() {
    let mut pair = Pair::new(config(Role::Worker(0)), config(Role::ParameterServer(0)));
    pair.run(usize::MAX);
    let data: Vec<u8> = (0..frame::CHUNK_LEN_MAX).map(|i| i as u8).collect();
    pair.client
        .send(&Message::Gradients { step: 3, samples: 4, loss: 0.5, fresh: false })
        .expect("open");
    pair.client.send_chunk(3, 512, &data).expect("open");
    let mut bytes = Vec::new();
    pair.client.output(&mut bytes).expect("memory");
    pair.server.receive(&bytes).expect("valid");
    assert!(!pair.server.wants_input(), "a whole chunk waits");
    let gradients = Message::Gradients { step: 3, samples: 4, loss: 0.5, fresh: false };
    assert!(matches!(pair.server.next_event(), Ok(Some(Event::Message(m))) if m == gradients));
    for _ in 0..2 {
        let shown = pair.server.next_event().expect("valid").expect("a chunk");
        assert!(matches!(shown, Event::Chunk { step: 3, offset: 512, data: d } if d == data));
        pair.server.hold();
    }
    assert!(pair.server.next_event().expect("valid").is_some());
    assert!(pair.server.next_event().expect("valid").is_none());
    assert!(pair.server.wants_input());
}

#[test]
fn a_debug_td_or_another_image_is_refused_on_both_sides() {
    for (image, debug, code) in [("hfl", true, "debug-td"), ("evil", false, "measurement")] {
        let odd: Arc<dyn Attester> = Arc::new(SimPlatform::with_td(clock(), image, debug));
        let worker = config_on(Role::Worker(0), Arc::clone(&odd));
        let ends = Pair::new(worker, config(Role::ParameterServer(0))).run(usize::MAX);
        assert_eq!(rejected(&ends, 1), code);
        assert!(ends[0].is_some(), "the worker hears of it");
        let server = config_on(Role::ParameterServer(0), odd);
        let ends = Pair::new(config(Role::Worker(0)), server).run(usize::MAX);
        assert_eq!(rejected(&ends, 0), code);
    }
}

#[test]
fn certificates_without_evidence_or_with_stolen_evidence_are_refused() {
    let platform = Arc::new(SimPlatform::new(clock()));
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
    let none = Identity::with_evidence(key(), clock(), None).expect("certificate");
    let honest = Identity::new(&*platform, clock()).expect("certificate");
    let content = evidence_of(&honest.certificate);
    let stolen = Identity::with_evidence(key(), clock(), Some(&content)).expect("certificate");
    for (identity, code) in [(none, "evidence-missing"), (stolen, "report-data")] {
        let attester = Arc::clone(&platform) as Arc<dyn Attester>;
        let role = Role::Worker(0);
        let odd = Config::with_identity(role, Some(attester), verifier(), clock, identity);
        let odd = Arc::new(odd.expect("config"));
        let ends = Pair::new(odd, config(Role::ParameterServer(0))).run(usize::MAX);
        assert_eq!(rejected(&ends, 1), code);
    }
}

pub(super) fn evidence_of(certificate: &[u8]) -> Vec<u8> {
    use x509_cert::der::Decode;
    let certificate = x509_cert::Certificate::from_der(certificate).expect("DER");
    let extensions = certificate.tbs_certificate().extensions().expect("extensions");
    let is_evidence = |e: &&x509_cert::ext::Extension| e.extn_id.to_string() == "2.23.133.5.4.9";
    extensions.iter().find(is_evidence).expect("evidence").extn_value.as_bytes().to_vec()
}

/// Gives the first quote that it ever made, or one over changed report data.
struct Lying {
    platform: SimPlatform,
    lie: fn([u8; 64]) -> [u8; 64],
    /// The certificate's evidence is honest, the session's is not.
    calls: std::sync::atomic::AtomicUsize,
}

impl Attester for Lying {
    fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        let first = self.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        self.platform.quote(&if first { *report_data } else { (self.lie)(*report_data) })
    }

    fn name(&self) -> &'static str {
        "lying"
    }
}

#[test]
fn a_quote_of_another_connection_is_refused() {
    let lying = Arc::new(Lying {
        platform: SimPlatform::new(clock()),
        lie: |mut data| {
            data[63] ^= 1;
            data
        },
        calls: Default::default(),
    });
    let odd = config_on(Role::Worker(0), lying);
    let ends = Pair::new(odd, config(Role::ParameterServer(0))).run(usize::MAX);
    assert_eq!(rejected(&ends, 1), "report-data");
    assert!(matches!(ends[0], Some(CloseReason::RefusedByPeer(Refusal::Evidence))), "{ends:?}");
}

/// Shows the session quotes of somebody else: what a man in the middle has to offer.
struct Relay {
    honest: SimPlatform,
    recorded: Vec<u8>,
    calls: std::sync::atomic::AtomicUsize,
}

impl Attester for Relay {
    fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        match self.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => self.honest.quote(report_data),
            _ => Ok(self.recorded.clone()),
        }
    }

    fn name(&self) -> &'static str {
        "relay"
    }
}

#[test]
fn a_replayed_quote_of_an_honest_session_is_refused() {
    let recorded = SimPlatform::new(clock()).quote(&[3; 64]).expect("quote");
    let relay = Relay { honest: SimPlatform::new(clock()), recorded, calls: Default::default() };
    let odd = config_on(Role::ParameterServer(0), Arc::new(relay));
    let ends = Pair::new(config(Role::Worker(0)), odd).run(usize::MAX);
    assert_eq!(rejected(&ends, 0), "report-data");
}

#[test]
fn a_tls_terminating_man_in_the_middle_is_refused() {
    // The middle is an accepted TD with a certificate of its own and passes all application bytes on.
    let mut left = Pair::new(config(Role::Worker(0)), config(Role::ParameterServer(0)));
    let mut right = Pair::new(config(Role::Worker(0)), config(Role::ParameterServer(0)));
    let mut ends: Ends = [None, None];
    for _ in 0..20 {
        shuttle(&mut left.client, &mut left.server, &mut ends[0]);
        shuttle(&mut right.server, &mut right.client, &mut ends[1]);
        // What the victims say, the middle repeats on the other connection.
        let from_worker = std::mem::take(&mut left.server.plain);
        let from_server = std::mem::take(&mut right.client.plain);
        if !from_worker.is_empty() {
            right.client.write(&[], &from_worker).expect("queue");
        }
        if !from_server.is_empty() {
            left.server.write(&[], &from_server).expect("queue");
        }
    }
    for (side, end) in ends.iter().enumerate() {
        assert!(end.is_some(), "victim {side} was deceived");
    }
    assert!(!left.client.is_open() && !right.server.is_open());
    let codes: Vec<&str> = (0..2)
        .filter_map(|side| match &ends[side] {
            Some(CloseReason::Rejected(rejection)) => Some(rejection.code()),
            _ => None,
        })
        .collect();
    assert!(codes.contains(&"report-data"), "{ends:?}");
}

/// Moves bytes between a victim, which acts on them, and the middle's side, which only decrypts. The
/// middle keeps its own words to itself.
fn shuttle(victim: &mut Session, middle: &mut Session, end: &mut Option<CloseReason>) {
    let mut bytes = Vec::new();
    victim.output(&mut bytes).expect("memory");
    middle.state = State::Closed;
    middle.receive(&bytes).expect("honest TLS");
    let mut bytes = Vec::new();
    middle.output(&mut bytes).expect("memory");
    feed(victim, &bytes, usize::MAX, end);
}

#[test]
fn another_protocol_version_is_refused() {
    let mut pair = Pair::new(config(Role::Worker(0)), config(Role::ParameterServer(0)));
    let mut bytes = Vec::new();
    // Up to the end of the handshake, then a hello of a later version from the client.
    pair.client.output(&mut bytes).expect("memory");
    pair.server.receive(&bytes).expect("valid");
    bytes.clear();
    pair.server.output(&mut bytes).expect("memory");
    pair.client.state = State::Closed;
    pair.client.receive(&bytes).expect("valid");
    let version = PROTOCOL_VERSION + 1;
    let hello = Message::Hello {
        version,
        role: Role::Worker(0),
        nonce: [1; 32],
        job: [0; 32],
        policy: [0; 32],
    };
    pair.client.put(&hello).expect("queue");
    bytes.clear();
    pair.client.output(&mut bytes).expect("memory");
    let mut end = None;
    feed(&mut pair.server, &bytes, usize::MAX, &mut end);
    assert!(matches!(end, Some(CloseReason::Version(theirs)) if theirs == version), "{end:?}");
}

#[test]
fn application_messages_before_the_evidence_are_refused() {
    let mut pair = Pair::new(config(Role::Worker(0)), config(Role::ParameterServer(0)));
    let mut bytes = Vec::new();
    pair.client.output(&mut bytes).expect("memory");
    pair.server.receive(&bytes).expect("valid");
    bytes.clear();
    pair.server.output(&mut bytes).expect("memory");
    pair.client.receive(&bytes).expect("valid");
    let join = Message::Join { data: [0; 32], samples: 1, batches: 1, classes: vec![1] };
    pair.client.put(&join).expect("queue");
    bytes.clear();
    pair.client.output(&mut bytes).expect("memory");
    let mut end = None;
    feed(&mut pair.server, &bytes, usize::MAX, &mut end);
    assert!(matches!(end, Some(CloseReason::NotAllowed("join"))), "{end:?}");
}

#[test]
fn our_own_key_shown_to_us_is_refused() {
    let both = config(Role::Worker(0));
    let ends = Pair::new(Arc::clone(&both), both).run(usize::MAX);
    assert_eq!(rejected(&ends, 0), "reflection");
}

#[test]
fn a_session_that_does_not_open_in_time_ends() {
    let mut server = Session::server(config(Role::ParameterServer(0)), JOB, NOW).expect("server");
    assert!(server.handle_timeout(OPEN_TIMEOUT - Duration::from_millis(1)).is_ok());
    assert!(matches!(server.handle_timeout(OPEN_TIMEOUT), Err(CloseReason::Timeout)));
}

#[test]
fn a_server_that_waits_is_not_taken_for_dead_and_a_dead_one_is_noticed() {
    // Questions for fresh evidence would come at random times in between.
    let unasked = |role| {
        let mut config = Arc::into_inner(config(role)).expect("ours");
        config.reattest = None;
        Arc::new(config)
    };
    let mut pair = Pair::new(unasked(Role::Worker(0)), unasked(Role::ParameterServer(0)));
    assert!(matches!(pair.run(usize::MAX), [None, None]));
    assert!(pair.client.is_open() && pair.server.is_open());
    let mut now = NOW;
    for session in [&mut pair.client, &mut pair.server] {
        session.handle_timeout(now).expect("open");
    }
    // An hour in which nobody has anything to say: the other side's work takes long.
    while now < NOW + Duration::from_secs(3600) {
        now = pair.server.timeout().expect("a server says that it is alive");
        pair.server.handle_timeout(now).expect("alive");
        assert!(pair.server.wants_output());
        assert!(matches!(pair.run(usize::MAX), [None, None]));
        pair.client.handle_timeout(now).expect("heard of it");
        // What it said counts from when it is told the time.
        pair.server.handle_timeout(now).expect("alive");
    }
    let silent = pair.client.timeout().expect("a client waits for a sign");
    pair.client.handle_timeout(silent - Duration::from_millis(1)).expect("not yet");
    let ended = pair.client.handle_timeout(silent);
    assert!(matches!(ended, Err(ref why @ CloseReason::Silent) if why.is_transient()), "{ended:?}");
}

#[test]
fn signs_of_life_do_not_pile_up() {
    let mut pair = Pair::new(config(Role::Worker(0)), config(Role::ParameterServer(0)));
    assert!(matches!(pair.run(usize::MAX), [None, None]));
    let len = |session: &mut Session| {
        let mut bytes = Vec::new();
        session.output(&mut bytes).expect("memory");
        bytes.len()
    };
    pair.server.probe().expect("open");
    let one = len(&mut pair.server);
    for _ in 0..100 {
        pair.server.probe().expect("open");
    }
    assert_eq!(len(&mut pair.server), one, "one that is not sent yet is enough");
    assert!(pair.server.next_event().expect("open").is_none());
    assert_eq!(len(&mut pair.server), one, "the last question is asked when it may be");
}

#[test]
fn a_question_is_answered_after_what_was_said_before_and_not_by_an_old_answer() {
    let mut pair = Pair::new(config(Role::Worker(0)), config(Role::ParameterServer(0)));
    assert!(matches!(pair.run(usize::MAX), [None, None]));
    let out = |session: &mut Session| {
        let mut bytes = Vec::new();
        session.output(&mut bytes).expect("memory");
        bytes
    };
    let none_left = |session: &mut Session| while session.next_event().expect("open").is_some() {};
    // An answer that lies in the server's socket unread, as behind gradients whose turn has not come.
    let first = pair.server.probe().expect("open");
    let asked = out(&mut pair.server);
    pair.client.receive(&asked).expect("valid");
    none_left(&mut pair.client);
    let old = out(&mut pair.client);
    // Then another process wants the place: only what is answered to this question counts.
    let second = pair.server.probe().expect("open");
    pair.server.receive(&old).expect("valid");
    none_left(&mut pair.server);
    assert_eq!(pair.server.answered(), first);
    assert!(first < second);
    // The client is asked while its gradients wait to be sent.
    pair.client
        .send(&Message::Gradients { step: 0, samples: 4, loss: 0.5, fresh: false })
        .expect("open");
    let asked = out(&mut pair.server);
    pair.client.receive(&asked).expect("valid");
    none_left(&mut pair.client);
    let gradients = out(&mut pair.client);
    pair.server.receive(&gradients).expect("valid");
    none_left(&mut pair.server);
    assert_eq!(pair.server.answered(), first);
    // Whoever drives the client is called again once that is out.
    none_left(&mut pair.client);
    let answer = out(&mut pair.client);
    pair.server.receive(&answer).expect("valid");
    none_left(&mut pair.server);
    assert_eq!(pair.server.answered(), second);
    pair.client.put(&Message::Alive { number: second + 1 }).expect("queue");
    let bytes = out(&mut pair.client);
    pair.server.receive(&bytes).expect("valid");
    assert!(matches!(pair.server.next_event(), Err(CloseReason::NotAllowed(_))));
}

#[test]
fn our_own_evidence_is_an_entry_like_any_other() {
    let server = config(Role::ParameterServer(0));
    let own = server.own_admission(JOB).expect("evidence");
    assert_eq!((own.role, own.server), (Role::ParameterServer(0), Role::ParameterServer(0)));
    assert!(own.verify(&verifier(), clock()).is_ok());
    let mut other = own.clone();
    other.job[0] ^= 1;
    assert!(matches!(other.verify(&verifier(), clock()), Err(Rejection::ReportData)));
    let again = server.own_admission(JOB).expect("evidence");
    assert_ne!(again.quote, own.quote, "fresh each time");
}

#[test]
fn a_forged_platform_is_refused() {
    // A chain under a root of the forger's own, with the same names.
    let platform = SimPlatform::new(clock());
    let bytes = platform.quote(&[1; 64]).expect("quote");
    let mut quote = crate::Quote::parse(&bytes).expect("quote");
    let check =
        |bytes: &[u8]| verifier().verify(bytes, &[1; 64], None, clock()).map_err(|why| why.code());
    assert!(check(&bytes).is_ok());
    let other = crate::Quote::parse(&SimPlatform::new(clock()).quote(&[1; 64]).expect("quote"));
    let chain = std::mem::replace(&mut quote.chain, other.expect("quote").chain);
    assert_eq!(check(&quote.encode()).err(), Some("qe-signature"), "another platform's chain");
    quote.chain = chain;
    for (name, at) in [("quote-signature", 60), ("quote-signature", 640), ("attestation-key", 705)]
    {
        let mut flipped = quote.encode();
        flipped[at] ^= 1;
        assert_eq!(check(&flipped).err(), Some(name), "byte {at}");
    }
    let mut flipped = quote.encode();
    flipped[800] ^= 1;
    assert_eq!(check(&flipped).err(), Some("qe-signature"));
    let late = verifier().verify(&bytes, &[1; 64], None, clock() + 400 * 24 * 3600);
    assert_eq!(late.map_err(|why| why.code()), Err("pck-chain"), "expired chain");
}

/// A configuration with this policy.
fn judging_by(role: Role, policy: Policy) -> Arc<Config> {
    let verifier = Verifier { trust: Trust::Simulated, policy };
    let platform = Arc::new(SimPlatform::new(clock()));
    Arc::new(Config::new(role, platform, verifier, clock).expect("config"))
}

/// An owner's machine: no TD, a key.
fn owner(role: Role, key: &OwnerKey) -> Arc<Config> {
    let owner = Config::of_owner(role, key, None, verifier(), clock);
    Arc::new(owner.expect("config"))
}

fn keyed(list: Role, key: &OwnerKey) -> Policy {
    let mut policy = verifier().policy;
    policy.keys.push((crate::Whose::Kind(list.kind()), vec![key.hash().expect("a hash")]));
    policy
}

#[test]
fn an_owner_without_a_td_is_known_by_its_key_in_its_role_only() {
    let key = OwnerKey::generate().expect("a key");
    let server = Role::ParameterServer(0);
    // A node at a server, and a server at a secret service.
    for (owned, is_client) in [(Role::TrustedNode, true), (Role::SecretService, false)] {
        let parties = |policy| match is_client {
            true => (owner(owned, &key), judging_by(server, policy)),
            false => (judging_by(server, policy), owner(owned, &key)),
        };
        let (client, other) = parties(keyed(owned, &key));
        let mut pair = Pair::new(client, other);
        let ends = pair.run(usize::MAX);
        assert!(ends.iter().all(Option::is_none), "{ends:?}");
        let seen = if is_client { pair.server.peer() } else { pair.client.peer() };
        let seen = seen.expect("a peer");
        assert!(seen.verdict.is_none() && seen.role == owned);
        assert_eq!(seen.key, key.hash().expect("a hash"));
        // Neither without the list, nor with another's key, nor in another's list.
        let stranger = OwnerKey::generate().expect("a key");
        let wrong = [
            (verifier().policy, "evidence-missing"),
            (keyed(owned, &stranger), "evidence-missing"),
        ];
        for (policy, code) in wrong {
            let (client, other) = parties(policy);
            let ends = Pair::new(client, other).run(usize::MAX);
            assert_eq!(rejected(&ends, usize::from(is_client)), code, "{owned}");
        }
    }
    // The key of a node makes nobody a worker, a server or a secret service.
    for role in [Role::Worker(0), Role::SecretService, server] {
        let policy = keyed(Role::TrustedNode, &key);
        let ends = Pair::new(owner(role, &key), judging_by(server, policy)).run(usize::MAX);
        assert_eq!(rejected(&ends, 1), "evidence-missing", "{role}");
    }
}

#[test]
fn participants_judge_by_one_policy_or_by_ones_that_they_list() {
    let ours = verifier().policy;
    let mut lax = ours.clone();
    lax.rules.debug = true;
    let (worker, server) = (Role::Worker(0), Role::ParameterServer(0));
    let run = |client: &Policy, other: &Policy| {
        Pair::new(judging_by(worker, client.clone()), judging_by(server, other.clone()))
            .run(usize::MAX)
    };
    let ends = run(&ours, &lax);
    assert_eq!(rejected(&ends, 1), "policy");
    let told = match &ends[0] {
        Some(end @ (CloseReason::RefusedByPeer(Refusal::Policy) | CloseReason::Rejected(_))) => end,
        other => panic!("{other:?}"),
    };
    assert!(told.to_string().contains("policies"), "{told}");
    // One side's word is not enough.
    let listing = |policy: &Policy, other: &Policy| Policy {
        policies: vec![other.digest()],
        ..policy.clone()
    };
    let ends = run(&listing(&ours, &lax), &lax);
    assert_eq!(rejected(&ends, 1), "policy");
    let ends = run(&listing(&ours, &lax), &listing(&lax, &ours));
    assert!(ends.iter().all(Option::is_none), "{ends:?}");
    // A trusted node has rules of its own: it takes no part.
    let node = judging_by(Role::TrustedNode, lax);
    let ends = Pair::new(node, judging_by(server, ours)).run(usize::MAX);
    assert!(ends.iter().all(Option::is_none), "{ends:?}");
}

#[test]
fn who_comes_back_is_the_one_of_before_where_keys_are_listed_for_several_roles() {
    let keys = [(); 2].map(|()| OwnerKey::generate().expect("a key"));
    let hashes = || keys.each_ref().map(|key| key.hash().expect("a hash")).to_vec();
    let role = Role::Worker(0);
    let listing = |whose| {
        let policy = Policy { keys: vec![(whose, hashes())], ..verifier().policy };
        let opened = |key| {
            let verifier = Verifier { trust: Trust::Simulated, policy: policy.clone() };
            let platform: Arc<dyn Attester> = Arc::new(SimPlatform::new(clock()));
            let worker = Config::of_owner(role, key, Some(platform), verifier, clock);
            let server = judging_by(Role::ParameterServer(0), policy.clone());
            let mut pair = Pair::new(Arc::new(worker.expect("config")), server);
            let ends = pair.run(usize::MAX);
            assert!(ends.iter().all(Option::is_none), "{ends:?}");
            pair.server
        };
        let first = opened(&keys[0]).admission().cloned().expect("a client");
        opened(&keys[0]).check_return(&first).expect("the same key");
        opened(&keys[1]).check_return(&first)
    };
    let refused = listing(crate::Whose::Kind(role.kind())).expect_err("another worker's key");
    assert!(refused.code() == "successor" && refused.to_string().contains("another key"));
    listing(crate::Whose::One(role)).expect("both are named for it");
}

/// The genuine program with secrets of the host: it is no secret service of whoever pins its owner's key.
#[test]
fn the_genuine_program_is_no_secret_service_of_another_owner() {
    let (key, host) = [(); 2].map(|()| OwnerKey::generate().expect("a key")).into();
    let platform = || Some(Arc::new(SimPlatform::new(clock())) as Arc<dyn Attester>);
    let service = |key| {
        let config = Config::of_owner(Role::SecretService, key, platform(), verifier(), clock);
        Arc::new(config.expect("config"))
    };
    let asking = || {
        let pinned = verifier().policy.with_service_key(key.hash().expect("a hash"));
        judging_by(Role::ParameterServer(0), pinned)
    };
    let ends = Pair::new(asking(), service(&host)).run(usize::MAX);
    assert_eq!(rejected(&ends, 0), "key");
    let ends = Pair::new(asking(), service(&key)).run(usize::MAX);
    assert!(ends.iter().all(Option::is_none), "{ends:?}");
}
