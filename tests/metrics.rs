//! `--metrics` as those see it who use it: promtool's rules, and a Prometheus that scrapes two roles of a job.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::processes::{Cast, Dir, STEPS, free_port};

/// Longest wait for a scrape on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Prometheus of ours, ended with the test.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Already gone is as good as ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The body of what is at a path, once somebody listens there.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

fn await_some<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = get() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The queries of the dashboard, over a time that has several scrapes.
fn dashboard() -> Vec<String> {
    let dashboard = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitoring/dashboard.json");
    let dashboard = fs::read_to_string(dashboard).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let queries = targets.map(|target| target["expr"].as_str().expect("a query"));
    let queries: Vec<String> = queries.map(|q| q.replace("$__rate_interval", "30s")).collect();
    assert!(queries.len() >= panels.len(), "a panel without a query");
    queries
}

/// As it may stand in an address.
fn encoded(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn promtool_finds_no_fault_and_a_prometheus_scrapes_a_job() {
    let dir = Dir::new("metrics");
    let ports = [free_port(), free_port(), free_port()];
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: hfl\n  static_configs:\n  \
         - targets: ['127.0.0.1:{}', '127.0.0.1:{}']\n",
        ports[0], ports[1]
    );
    fs::write(dir.path("prometheus.yml"), config).expect("write");
    let flag = |name: &str, path: &str| format!("--{name}={}", dir.path(path).display());
    let prometheus = Command::new("prometheus")
        .args([flag("config.file", "prometheus.yml"), flag("storage.tsdb.path", "series")])
        .arg(format!("--web.listen-address=127.0.0.1:{}", ports[2]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _prometheus = Prometheus(prometheus.expect("prometheus (.ci/setup.sh installs it)"));

    let cast = Cast::new(&dir, "model");
    let at = [ports[0].to_string(), ports[1].to_string()];
    let ps0 = cast.start("ps0", &[("--metrics", &at[0]), ("--checkpoint-every", "1")]);
    await_some("ps0 is ready once it listens", || get(ports[0], "/readyz"));
    let slow = ("--pause-ms", "400");
    let worker0 = cast.start("worker0", &[("--metrics", &at[1]), slow]);
    await_some("a worker is alive before anybody verified it", || get(ports[1], "/healthz"));
    let worker1 = cast.start("worker1", &[slow]);
    ps0.wait_for("step: 2,");

    let told = get(ports[0], "/metrics").expect("metrics");
    let mut check = Command::new("promtool");
    check.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut check = check.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("promtool");
    check.stdin.take().expect("a pipe").write_all(told.as_bytes()).expect("write");
    let found = check.wait_with_output().expect("promtool");
    let said = String::from_utf8_lossy(&found.stderr).into_owned();
    assert!(found.status.success() && said.is_empty(), "{said}\n{told}");
    let job_steps = format!("hfl_job_steps {STEPS}\n");
    for line in ["hfl_workers 2\n", "role=\"ps0\"} 1\n", &job_steps] {
        assert!(told.contains(line), "{line} not in: {told}");
    }

    // What it has scraped of both: steps that grew, by each role's own count.
    let query = "/api/v1/query?query=count(hfl_steps_total%20%3E%200)";
    let scraped = "\"2\"]";
    await_some("Prometheus scrapes both", || {
        get(ports[2], query).filter(|answer| answer.contains(scraped))
    });
    // What deploy's dashboard shows is there to be shown.
    for query in dashboard() {
        await_some(&query, || {
            // Of all the time of the test: the job may be done meanwhile.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
            let (start, query) = (now - 2 * PATIENCE.as_secs(), encoded(&query));
            let range = format!("query={query}&start={start}&end={now}&step=1");
            let answer = get(ports[2], &format!("/api/v1/query_range?{range}"))?;
            answer.contains("\"values\":[[").then_some(())
        });
    }
    cast.finish(&ps0, vec![worker0, worker1]);
    assert_eq!(ps0.end().0, 0);
}
