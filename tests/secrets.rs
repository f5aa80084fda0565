//! The whole story of a model that nobody may see: a passphrase for attested roles only, training into
//! encrypted volumes, the volume fetched by a trusted node, opened and evaluated there; and who is refused.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Output;

use hfl::training::volume::create_volume;
use luks::{Hash, KdfCost, Options, Passphrase};
use protocol::{Policy, SimPlatform};

use crate::cli::hfl;
use crate::processes::{Cast, Dir, Process, STEPS, free_port};

const WORD: &str = "correct horse battery staple";
const NOW: u64 = 1_800_000_000;

/// A service with these secrets; its files are in `dir`.
pub(crate) struct Serving {
    pub(crate) address: String,
    audit: PathBuf,
    /// What is asked accepts the service, whatever it is itself.
    pub(crate) policy: PathBuf,
    process: Process,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The policy of a secret: these roles of this image.
fn policy(image: &str, roles: &str) -> String {
    let template = Policy::template(SimPlatform::with_td(NOW, image, false).report(), None);
    template.replacen("\"mr_td\"", &format!("\"roles\": [{roles}], \"mr_td\""), 1)
}

impl Serving {
    pub(crate) fn start(dir: &Dir, secrets: &str) -> Self {
        fs::write(dir.path("secrets.json"), secrets).expect("secrets");
        Self::start_with(dir, &["--secrets", text(&dir.path("secrets.json"))])
    }

    fn start_with(dir: &Dir, more: &[&str]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let (audit, accepts) = (dir.path("audit.jsonl"), dir.path("accepts.json"));
        fs::write(&accepts, policy("hfl", "\"secret\", \"ps\"")).expect("policy");
        let flags = ["secret", "serve", "--attestation", "sim", "--listen", &address];
        let flags = [&flags[..], &["--audit", text(&audit)], more].concat();
        let process = Process::start(&flags, "info");
        Self { address, audit, policy: accepts, process }
    }

    /// Asks for a secret in a role, running an image.
    fn get(&self, app_id: &str, role: &str, image: &str) -> Output {
        let flags = ["secret", "get", "--attestation", "sim", "--secret-service", &self.address];
        let who = ["--role", role, "--sim-image", image, "--secret-wait", "20"];
        let policy = ["--policy", text(&self.policy)];
        hfl(&[&flags[..], &["--app-id", app_id], &who, &policy].concat())
    }

    /// Who may have a secret has it.
    #[track_caller]
    pub(crate) fn has(&self, app_id: &str, secret: &str) {
        let output = self.get(app_id, "ps0", "hfl");
        assert_eq!(output.stdout, secret.as_bytes(), "{}", stderr(&output));
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it in good order and returns its log and its audit log.
    pub(crate) fn end(self) -> (String, String) {
        self.process.terminate();
        let (code, log) = self.process.end();
        assert_eq!(code, 0, "{log}");
        let checked = hfl(&["secret", "audit", "--log", text(&self.audit)]);
        assert!(checked.status.success(), "{}", stderr(&checked));
        (log, fs::read_to_string(&self.audit).expect("audit log"))
    }
}

#[track_caller]
fn refused(output: &Output, reason: &str) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty() && stderr.contains(reason), "{stderr}");
}

pub(crate) fn volume(path: &Path, word: &str) {
    let mut options = Options::new(520 << 20);
    options.cost = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
    let passphrase = Passphrase::from_bytes(word.as_bytes());
    create_volume(path, None, &options, &[passphrase], false, true).expect("create");
}

/// Five releases (ps0 began twice), three refusals with their reasons.
fn check_audit(audit: &str) {
    let lines: Vec<serde_json::Value> =
        audit.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    let roles: Vec<&str> = of("released").iter().filter_map(|line| line["role"].as_str()).collect();
    assert_eq!((roles.len(), of("loaded").len()), (5, 1), "{audit}");
    assert!(["ps0", "worker0", "worker1"].iter().all(|role| roles.contains(role)), "{roles:?}");
    let reasons = of("refused");
    let reasons: Vec<&str> = reasons.iter().filter_map(|line| line["reason"].as_str()).collect();
    let expected = ["[measurement]", "[role]", "no such app id"];
    assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
    assert!(
        expected.iter().all(|part| reasons.iter().any(|why| why.contains(part))),
        "{reasons:?}"
    );
}

/// Another image, another role, another name, a name that is none; and one who may have it.
fn others_are_refused(service: &Serving) {
    let app_id = "hfl-tdx-coco-app";
    refused(&service.get(app_id, "worker0", "evil"), "refused");
    refused(&service.get(app_id, "node", "hfl"), "no secret of this app id for us");
    refused(&service.get("other", "worker0", "hfl"), "no secret of this app id for us");
    refused(&service.get(&"x".repeat(200), "worker0", "hfl"), "broke the protocol");
    assert_eq!(service.get(app_id, "worker0", "hfl").stdout, WORD.as_bytes());
}

#[test]
fn a_model_goes_from_attested_roles_to_a_trusted_node_and_to_nobody_else() {
    let dir = Dir::new("story");
    let volumes = ["ps.luks", "worker0.luks", "worker1.luks"].map(|name| dir.path(name));
    volumes.iter().for_each(|path| volume(path, WORD));
    let [ps_volume, worker_volume, other_volume] = volumes;
    let secrets = format!(
        r#"{{"hfl-tdx-coco-app":{{"secret":"{WORD}","policy":{}}}}}"#,
        policy("hfl", r#""ps","worker""#)
    );
    let service = Serving::start(&dir, &secrets);
    let cast = Cast::new(&dir, "unused");
    let address = service.address.clone();
    let keyed = |volume| [("--volume", volume), ("--secret-service", address.as_str())];
    let serves = [("--linger", "120"), ("--checkpoint-every", "1000")];
    let server = [&keyed(text(&ps_volume))[..], &serves].concat();
    let ps0 = cast.start("ps0", &server);
    let workers = [
        cast.start("worker0", &keyed(text(&worker_volume))),
        cast.start(
            "worker1",
            &[&keyed(text(&other_volume))[..], &[("--pause-ms", "150")]].concat(),
        ),
    ];
    // Asked to end, ps0 leaves a volume that will be an older one; it goes on with the passphrase again.
    ps0.wait_for("step: 1,");
    ps0.terminate();
    let (code, log) = ps0.end();
    assert!(code == 1 && log.contains("the checkpoint is of step"), "{log}");
    let older = dir.path("older.luks");
    fs::copy(&ps_volume, &older).expect("copy");
    let ps0 = cast.start("ps0", &server);
    // Asked for while the training runs; it comes when that is over.
    let from = cast.server();
    let fetched = dir.path("fetched.luks");
    let flags = ["model", "pull", "--attestation", "sim", "--from", &from, "--out", text(&fetched)];
    ps0.wait_for("step: ");
    let evil = ["--sim-image", "evil", "--policy", text(&service.policy)];
    refused(&hfl(&[&flags[..], &evil].concat()), "refused");
    let pull = Process::start(&flags, "warn");
    let hash = cast.finish(&ps0, workers.into());
    let (code, log) = pull.end();
    assert_eq!(code, 0, "{log}");
    let (code, log) = ps0.end();
    assert_eq!(code, 0, "{log}");
    assert!(fs::read(&fetched).expect("volume") == fs::read(&ps_volume).expect("volume"));
    assert!(!dir.path("fetched.luks.part").exists());

    // On the trusted node, which has the passphrase from the owner of the model.
    let key = dir.path("key");
    fs::write(&key, WORD).expect("key");
    let data = dir.path("data");
    let data = ["--data", text(&data), "--key-file", text(&key), "--json"];
    let eval = |volume: &Path, more: &[&str]| {
        hfl(&[&["eval", "--volume", text(volume)], &data[..], more].concat())
    };
    let output = eval(&fetched, &[]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["step"], &report["steps"]), (&STEPS.into(), &STEPS.into()), "final");
    assert_eq!(
        format!("parameters: sha256:{}", report["parameters"].as_str().expect("hash")),
        hash
    );

    others_are_refused(&service);
    let (log, audit) = service.end();
    for text in [&log, &audit] {
        assert!(!text.contains(WORD), "a secret in a log");
    }
    check_audit(&audit);

    // The service is gone.
    let late = [("--secret-wait", "2"), ("--linger", "0")];
    let (code, log) = cast.start("ps0", &[&server[..], &late].concat()).end();
    assert!(code == 1 && log.contains(&address) && log.contains("given up after 2 s"), "{log}");
    // Another volume in the place of ours, and one of before the training.
    let other = dir.path("other.luks");
    volume(&other, "another word");
    refused(&eval(&other, &[]), "no keyslot");
    refused(&eval(&older, &["--min-step", "8"]), "it was set back");
}

#[test]
fn one_shot_secrets_reloading_and_a_restart() {
    let dir = Dir::new("oneshot");
    let once = |uses: u32| format!(r#"{{"app":{{"secret":"s","uses":{uses}}},"flat":"word"}}"#);
    let service = Serving::start(&dir, &once(1));
    assert_eq!(service.get("app", "node", "hfl").stdout, b"s");
    refused(&service.get("app", "node", "hfl"), "no secret of this app id for us");
    assert_eq!(service.get("flat", "ps0", "hfl").stdout, b"word");
    let (log, _) = service.end();
    assert!(log.contains("a new log, so the uses of secrets count from zero"), "{log}");
    // What was given out is not forgotten; one more is allowed by hand, without another restart.
    let service = Serving::start(&dir, &once(1));
    refused(&service.get("app", "node", "hfl"), "no secret of this app id for us");
    fs::write(dir.path("secrets.json"), once(22)).expect("secrets");
    let given = (0..50).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        service.get("app", "node", "hfl").stdout == b"s"
    });
    assert!(given, "the changed file was not read");
    // A file that is damaged serves nobody, and says so.
    fs::write(dir.path("secrets.json"), "{\"flat\":\"word\"").expect("secrets");
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let flags = ["secret", "get", "--attestation", "sim", "--app-id", "flat"];
    let flags =
        [&flags[..], &["--secret-service", &service.address, "--secret-wait", "5"]].concat();
    refused(&hfl(&flags), "cannot do that now");
    let (log, audit) = service.end();
    assert!(log.contains("nobody gets a secret until that is mended"), "{log}");
    assert!(log.contains("no rules of their own"), "{log}");

    // Strangers who come too often keep nobody out, though all come from one address as behind a proxy; and who
    // attests may come as often as it likes.
    let flags = ["--secrets", text(&dir.path("flat.json")), "--rate", "2"].map(str::to_owned);
    fs::write(dir.path("flat.json"), "{\"flat\":\"word\"}").expect("secrets");
    let service = Serving::start_with(&dir, &flags.each_ref().map(String::as_str));
    assert_eq!(service.get("flat", "node", "hfl").stdout, b"word", "it listens");
    let strangers: Vec<TcpStream> =
        (0..300).filter_map(|_| TcpStream::connect(&service.address).ok()).collect();
    assert_eq!(strangers.len(), 300);
    for _ in 0..4 {
        assert_eq!(service.get("flat", "node", "hfl").stdout, b"word");
    }
    let (log, _) = service.end();
    assert!(log.contains("gave way to others"), "{log}");

    // A changed audit log stops the service.
    fs::write(dir.path("audit.jsonl"), audit.replacen("flat", "flap", 1)).expect("write");
    let (code, log) = Serving::start(&dir, &once(1)).process.end();
    assert!(code == 1 && log.contains("the log was changed"), "{log}");
}

#[test]
fn secrets_in_an_encrypted_volume_and_into_a_private_file() {
    let dir = Dir::new("sealed-secrets");
    let (plain, path, key) = (dir.path("plain.json"), dir.path("secrets.luks"), dir.path("key"));
    fs::write(&plain, format!("{{\"app\":\"{WORD}\"}}")).expect("secrets");
    fs::write(&key, "the owner's").expect("key");
    volume(&path, "the owner's");
    let place = ["--volume", text(&path), "--key-file", text(&key)];
    let sealed = hfl(&[&["secret", "seal", "--secrets", text(&plain)], &place[..]].concat());
    assert!(sealed.status.success(), "{}", stderr(&sealed));
    let service = Serving::start_with(&dir, &place);
    assert_eq!(service.get("app", "node", "hfl").stdout, WORD.as_bytes());
    let out = dir.path("out");
    let flags = ["secret", "get", "--attestation", "sim", "--app-id", "app", "--out", text(&out)];
    let flags = [&flags[..], &["--secret-service", &service.address]].concat();
    assert!(hfl(&flags).status.success());
    assert_eq!(fs::read(&out).expect("file"), WORD.as_bytes());
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&out).expect("file").permissions());
    assert_eq!(mode & 0o777, 0o600);
    // What is there is not overwritten.
    refused(&hfl(&flags), text(&out));
    service.end();
}
