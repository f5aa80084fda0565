//! `--metrics`: what a role does, in Prometheus' text format (version 0.0.4), and its health, over plain HTTP.
//!
//! A thread of its own answers whoever has asked and gives each a second; of those who say nothing the oldest gives way
//! to who comes. So nobody can hold up the role, nor keep a kubelet from hearing that it lives. What is said is
//! numbers, and nothing of it is secret.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::failure::{Doing, Failure};

/// Connections at a time; a scraper and a kubelet need two.
const GUESTS_MAX: usize = 64;
/// How long one request may take, with its answer.
const REQUEST_MAX: Duration = Duration::from_secs(1);
/// Bytes of a request at most; a scraper's has some 300.
const REQUEST_LEN_MAX: usize = 4096;
/// After a failed accept (no descriptors left, say) somebody may have ended something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Steps that this process saw done.
    Steps,
    /// The step that the job has reached.
    Step,
    /// Steps of the whole job.
    JobSteps,
    /// Loss of the last step.
    Loss,
    /// Seconds that the steps took, in sum.
    StepSeconds,
    /// Images of the steps.
    Images,
    /// Bytes that came in over the job's connections.
    Received,
    /// Bytes that went out over them.
    Sent,
    /// Peers whose evidence was accepted.
    Verified,
    /// Workers that take part now.
    Workers,
    /// Step of the last checkpoint.
    CheckpointStep,
    /// When it was written.
    CheckpointTime,
}

/// Name, type and help of each, by Prometheus' conventions: units in the name, `_total` for what only grows.
const METRICS: [(Metric, &str, &str, &str); 12] = [
    (Metric::Steps, "hfl_steps_total", "counter", "Steps that this process saw done."),
    (Metric::Step, "hfl_step", "gauge", "Step that the job has reached."),
    (Metric::JobSteps, "hfl_job_steps", "gauge", "Steps of the whole job."),
    (Metric::Loss, "hfl_loss", "gauge", "Loss of the last step."),
    (Metric::StepSeconds, "hfl_step_seconds_total", "counter", "Seconds that the steps took."),
    (Metric::Images, "hfl_images_total", "counter", "Images of the steps."),
    (Metric::Received, "hfl_received_bytes_total", "counter", "Bytes that came from peers."),
    (Metric::Sent, "hfl_sent_bytes_total", "counter", "Bytes that went to peers."),
    (Metric::Verified, "hfl_verified_peers_total", "counter", "Peers whose evidence was accepted."),
    (Metric::Workers, "hfl_workers", "gauge", "Workers that take part now."),
    (Metric::CheckpointStep, "hfl_checkpoint_step", "gauge", "Step of the last checkpoint."),
    (
        Metric::CheckpointTime,
        "hfl_checkpoint_timestamp_seconds",
        "gauge",
        "When the last checkpoint was written, in seconds since 1970.",
    ),
];

/// The numbers of one role; each is written by one thread and read by another.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Bits of an `f64`, as Prometheus' numbers are.
    values: [AtomicU64; METRICS.len()],
    ready: AtomicBool,
}

impl Metrics {
    /// Sets a number. Each is looked at alone, so no order between two is promised.
    pub fn set(&self, metric: Metric, value: f64) {
        self.values[metric as usize].store(value.to_bits(), Ordering::Relaxed);
    }

    /// Adds to a number; only its one writer does.
    pub fn add(&self, metric: Metric, more: f64) {
        self.set(metric, self.get(metric) + more);
    }

    /// The role does its work from now on.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    fn get(&self, metric: Metric) -> f64 {
        f64::from_bits(self.values[metric as usize].load(Ordering::Relaxed))
    }

    fn render(&self, role: &str) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let mut out = format!(
            "# HELP hfl_build_info Version and role of this process.\n# TYPE hfl_build_info gauge\n\
             hfl_build_info{{version=\"{version}\",role=\"{role}\"}} 1\n"
        );
        for (metric, name, kind, help) in METRICS {
            let value = self.get(metric);
            // Writing to a string does not fail.
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
        out
    }

    /// The answer to a request with this first line.
    fn to_line(&self, line: &str, role: &str) -> String {
        let (status, kind, body) = match line.split(' ').collect::<Vec<_>>()[..] {
            ["GET", path, _] => self.answer(path.split('?').next().unwrap_or(path), role),
            _ => ("405 Method Not Allowed", "text/plain", "GET\n".into()),
        };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    /// Status, content type and body for a path.
    fn answer(&self, path: &str, role: &str) -> (&'static str, &'static str, String) {
        let plain = "text/plain; charset=utf-8";
        match path {
            "/metrics" => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", self.render(role)),
            "/healthz" => ("200 OK", plain, "ok\n".into()),
            "/readyz" if self.ready.load(Ordering::Relaxed) => ("200 OK", plain, "ready\n".into()),
            "/readyz" => ("503 Service Unavailable", plain, "not ready\n".into()),
            _ => ("404 Not Found", plain, "/metrics, /healthz, /readyz\n".into()),
        }
    }
}

/// Serves the numbers of a role at `HOST:PORT`, or at this machine's own address for a bare port.
///
/// # Errors
/// When nobody can listen there.
pub fn serve(metrics: &Arc<Metrics>, at: &str, role: String) -> Result<SocketAddr, Failure> {
    let what = || format!("--metrics {at}");
    let addresses: Vec<SocketAddr> = match at.parse::<u16>() {
        Ok(port) => vec![(Ipv4Addr::LOCALHOST, port).into()],
        Err(_) => at.to_socket_addrs().doing(what())?.collect(),
    };
    let listener = TcpListener::bind(&addresses[..]).doing(what())?;
    let local = listener.local_addr().doing(what())?;
    listener.set_nonblocking(true).doing(what())?;
    let metrics = Arc::clone(metrics);
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            let mut guests = VecDeque::new();
            loop {
                if turn(&listener, &mut guests, |line| metrics.to_line(line, &role)).is_err() {
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        })
        .doing(what())?;
    Ok(local)
}

/// Somebody who may ask something.
struct Guest {
    stream: TcpStream,
    request: Vec<u8>,
    end: Instant,
}

/// Waits for something to happen, takes in who comes and answers who has asked.
fn turn(
    listener: &TcpListener,
    guests: &mut VecDeque<Guest>,
    answer: impl Fn(&str) -> String,
) -> io::Result<()> {
    // The oldest is the first, and its time ends first.
    let left = guests.front().map(|guest| guest.end.saturating_duration_since(Instant::now()));
    // So that its time is over, not almost, when the wait is.
    let left = left.map(|left| left + Duration::from_millis(1));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    let (comes, speaks): (bool, Vec<bool>) = {
        let mut watched = vec![PollFd::new(listener, PollFlags::IN)];
        watched.extend(guests.iter().map(|guest| PollFd::new(&guest.stream, PollFlags::IN)));
        poll(&mut watched, left.as_ref())?;
        let mut ready = watched.iter().map(|fd| !fd.revents().is_empty());
        (ready.next().unwrap_or(false), ready.collect())
    };
    let (now, mut speaks) = (Instant::now(), speaks.into_iter());
    // Whoever asks badly or goes away gets nothing; the next is as welcome.
    guests.retain_mut(|guest| {
        let speaks = speaks.next().unwrap_or(false);
        let stays = !speaks || guest.converse(&answer).unwrap_or(false);
        stays && guest.end > now
    });
    if comes {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // Who came is gone again.
            Err(error) if is_of_one(error.kind()) => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        if guests.len() >= GUESTS_MAX {
            guests.pop_front();
        }
        guests.push_back(Guest { stream, request: Vec::new(), end: now + REQUEST_MAX });
    }
    Ok(())
}

/// Whether a failed accept is of the one who came, and not of this process.
fn is_of_one(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted)
}

impl Guest {
    /// Hears more of the request, and answers it once it is whole; whether more is to come.
    fn converse(&mut self, answer: impl Fn(&str) -> String) -> io::Result<bool> {
        let mut piece = [0; 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => return Ok(false),
            Ok(len) => self.request.extend_from_slice(&piece[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
        if !self.request.windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(self.request.len() <= REQUEST_LEN_MAX);
        }
        let line = self.request.split(|&byte| byte == b'\r').next().unwrap_or_default();
        // A few KiB into a buffer that is empty: all of it goes at once, or the other end is no scraper.
        self.stream.write_all(answer(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_row() {
        for (index, (metric, name, kind, _)) in METRICS.into_iter().enumerate() {
            assert_eq!(metric as usize, index, "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        }
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        stream.write_all(request.as_bytes()).expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    #[test]
    fn numbers_and_health_are_told_and_nobody_is_held_up() {
        let metrics = Arc::new(Metrics::default());
        let address = serve(&metrics, "0", "ps0".into()).expect("serve");
        assert!(address.ip().is_loopback(), "a bare port is this machine's own");
        let get = |path: &str| ask(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(get("/readyz").starts_with("HTTP/1.1 503 "));
        metrics.set_ready();
        metrics.add(Metric::Steps, 1.0);
        metrics.add(Metric::Steps, 1.0);
        metrics.set(Metric::Loss, 2.25);
        assert!(get("/readyz").starts_with("HTTP/1.1 200 "));
        // Connections that say nothing, or too much, cost those who ask nothing: one after the other these took
        // minutes.
        let mut silent: Vec<TcpStream> =
            (0..300).map(|_| TcpStream::connect(address).expect("connect")).collect();
        for (number, stream) in silent.iter_mut().enumerate() {
            // Whoever gave way already takes no more.
            let _ = stream.write(&vec![b'x'; number * 20]);
        }
        let told = get("/metrics?x=1");
        for line in ["hfl_steps_total 2\n", "hfl_loss 2.25\n", "role=\"ps0\"} 1\n"] {
            assert!(told.contains(line), "{line} not in: {told}");
        }
        assert!(get("/secrets").starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    }
}
