//! A job between hosts: network namespaces with names of their own, a passthrough proxy, cut links.
//!
//! Ignored by default because it needs root and a proxy: `.ci/network.sh` runs it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::processes::{Cast, Dir, Process, undisturbed};

/// The proxy's port, the same for every name behind it.
const PORT: u16 = 30443;
/// Namespaces: the proxy's, which links the others, and two hosts.
const HUB: &str = "hfl-hub";
const HOSTS: [&str; 2] = ["hfl-ps", "hfl-workers"];

/// Namespaces that go away with the test.
struct Hosts;

#[track_caller]
fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().expect("ip");
    assert!(status.success(), "ip {words}");
}

impl Hosts {
    /// Each host's link is 10.77.N.0/24, with the hub at .1 and the host at .2.
    fn new() -> Self {
        let hosts = Self;
        hosts.remove();
        ip(&format!("netns add {HUB}"));
        for (number, host) in HOSTS.iter().enumerate() {
            ip(&format!("netns add {host}"));
            ip(&format!("-n {HUB} link add to{number} type veth peer name eth0 netns {host}"));
            ip(&format!("-n {HUB} addr add 10.77.{number}.1/24 dev to{number}"));
            ip(&format!("-n {HUB} link set to{number} up"));
            ip(&format!("-n {host} addr add 10.77.{number}.2/24 dev eth0"));
            ip(&format!("-n {host} link set eth0 up"));
            ip(&format!("-n {host} link set lo up"));
        }
        let names =
            ["10.77.0.2 ps0.hfl.test secret.hfl.test", "10.77.1.1 ps0.hfl.test secret.hfl.test"];
        for (host, names) in HOSTS.iter().zip(names) {
            fs::create_dir_all(format!("/etc/netns/{host}")).expect("root");
            fs::write(format!("/etc/netns/{host}/hosts"), format!("{names}\n")).expect("root");
        }
        hosts
    }

    fn start(&self, host: &str, program: &str, args: &[String]) -> Process {
        let words = ["netns", "exec", host, program].map(String::from);
        Process::start_program("ip", &[&words[..], args].concat(), "info")
    }

    /// Takes the link to the parameter server away, or gives it back.
    fn link(&self, state: &str) {
        ip(&format!("-n {HUB} link set to0 {state}"));
    }

    fn remove(&self) {
        for host in HOSTS.iter().chain([&HUB]) {
            // What is not there needs no removal.
            let _ = Command::new("ip").args(["netns", "del", host]).output();
            let _ = fs::remove_dir_all(format!("/etc/netns/{host}"));
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A proxy that looks at the name that TLS asks for and passes the rest on as it is.
fn proxy(hosts: &Hosts, dir: &Dir) -> Process {
    let path = dir.path("haproxy.cfg");
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         frontend all\n bind :{PORT}\n tcp-request inspect-delay 5s\n\
         tcp-request content accept if {{ req_ssl_hello_type 1 }}\n\
         use_backend ps if {{ req_ssl_sni -i ps0.hfl.test }}\n\
         use_backend secret if {{ req_ssl_sni -i secret.hfl.test }}\n\
         backend ps\n server ps 10.77.0.2:60002\n\
         backend secret\n server secret 10.77.0.2:50051\n"
    );
    fs::write(&path, text).expect("configuration");
    let words = ["-db", "-f", path.to_str().expect("UTF-8")].map(String::from);
    hosts.start(HUB, "haproxy", &words)
}

#[test]
#[ignore = "needs root and haproxy: .ci/network.sh"]
fn names_a_passthrough_proxy_and_cut_links_change_nothing_of_the_result() {
    let dir = Dir::new("network");
    let calm = undisturbed(&dir);
    let hosts = Hosts::new();
    let mut through = proxy(&hosts, &dir);
    let program = env!("CARGO_BIN_EXE_hfl");
    let cast = Cast::new(&dir, "between-hosts");
    let server = [("--ps-hosts", "ps0.hfl.test:60002")];
    let proxied = format!("ps0.hfl.test:{PORT}");
    let worker = [("--ps-hosts", proxied.as_str()), ("--pause-ms", "300")];

    let secrets = dir.path("secrets.json");
    fs::write(&secrets, r#"{"app":"word"}"#).expect("secrets");
    let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let audit = dir.path("audit.jsonl");
    let words = ["secret", "serve", "--attestation", "sim", "--listen", "10.77.0.2:50051"];
    let files = ["--secrets".into(), path(&secrets), "--audit".into(), path(&audit)];
    let service = hosts.start(HOSTS[0], program, &[&words.map(String::from)[..], &files].concat());
    let from = format!("secret.hfl.test:{PORT}");
    let words =
        ["secret", "get", "--attestation", "sim", "--app-id", "app", "--secret-service", &from];
    let got = hosts.start(HOSTS[1], program, &words.map(String::from));
    assert_eq!(got.next_line().as_deref(), Some("word"));
    assert_eq!(got.end().0, 0);
    // A name that the proxy does not know leads nowhere, and that is said in time.
    let (at, wait) = (format!("10.77.1.1:{PORT}"), ["--secret-wait".into(), "3".into()]);
    let words = words.map(|word| if word == from { at.clone() } else { word.into() });
    let (code, stderr) = hosts.start(HOSTS[1], program, &[&words[..], &wait].concat()).end();
    assert!(code == 1 && stderr.contains("given up"), "{stderr}");
    drop(service);

    let ps0 = hosts.start(HOSTS[0], program, &cast.words("ps0", &server));
    let workers: Vec<Process> = ["worker0", "worker1"]
        .map(|role| hosts.start(HOSTS[1], program, &cast.words(role, &worker)))
        .into();
    // In the middle of a transfer: gradients of 94 MB follow each step of a worker.
    workers[0].wait_for("step: 1,");
    hosts.link("down");
    std::thread::sleep(Duration::from_secs(2));
    hosts.link("up");
    ps0.wait_for("step: 2,");
    // The connections break: the proxy dies with what it was passing on.
    drop(through);
    through = proxy(&hosts, &dir);
    ps0.wait_for("step: 4,");
    // A link that stays away for longer than any side waits for an answer.
    hosts.link("down");
    std::thread::sleep(Duration::from_secs(40));
    hosts.link("up");
    assert_eq!(cast.finish(&ps0, workers), calm);
    drop(through);
}
