//! What a role says on stdout: the reference system's lines, or one JSON object a line; and progress on
//! a terminal's stderr.

use std::io::{ErrorKind, Write};
use std::sync::Arc;

use protocol::Role;

use crate::events::Event;
use crate::failure::Failure;
use crate::history::Evaluation;
use crate::metrics::{Metric, Metrics};
use crate::progress::{self, Training, draw};
use protocol::hex;

/// The voice of a role.
pub struct Report {
    metrics: Arc<Metrics>,
    json: bool,
    progress: bool,
    training: Training,
}

impl Report {
    /// Speaks lines, or JSON; and in numbers.
    pub fn new(json: bool, metrics: Arc<Metrics>) -> Self {
        // Whoever reads JSON shows what it wants; of several processes on a terminal the one in front speaks.
        let progress = !json && progress::is_in_front();
        Self { metrics, json, progress, training: Training::default() }
    }

    /// A peer's evidence was accepted.
    pub fn verified(&self, peer: Role) {
        self.metrics.add(Metric::Verified, 1.0);
        self.say(
            "Info: App: Verification completed successfully.",
            &Event::Verified { peer: peer.to_string() },
        );
    }

    /// A peer's evidence was accepted anew, so many times with the first.
    pub fn reattested(&self, peer: Role, times: u64) {
        self.tell(|| Event::Reattested { peer: peer.to_string(), times });
    }

    /// The job is known, and begins or goes on.
    pub fn started(&self, role: Role, job: &[u8; 32]) {
        let program = env!("CARGO_PKG_VERSION").to_owned();
        self.tell(|| Event::Started { role: role.to_string(), program, job: hex(job) });
    }

    /// A parameter server accepts connections.
    pub fn listening(&self, address: std::net::SocketAddr) {
        self.tell(|| Event::Listening { address: address.to_string() });
        log::info!("listening on {address}");
    }

    /// A step is done: its loss, the seconds it took, the images in it.
    pub fn step(&mut self, step: u64, steps: u64, loss: f32, seconds: f64, images: u64) {
        let shown = self.training.step(step, steps, f64::from(loss), images);
        self.count(step, steps, loss, seconds, images);
        self.clear_progress();
        self.say(
            &format!("step: {step}, loss: {loss:.6}, iter time: {seconds:.3}"),
            &Event::Step {
                step,
                steps,
                loss: Some(loss).filter(|l| l.is_finite()),
                seconds,
                images,
            },
        );
        if let (true, Some(line)) = (self.progress, shown) {
            draw(&line);
        }
    }

    /// What was found on test images.
    pub fn evaluated(&self, evaluation: &Evaluation, is_best: bool) {
        let (step, [right, images]) = (evaluation.step, evaluation.total());
        let percent = 100.0 * right as f64 / images as f64;
        let best = if is_best { ", the best so far" } else { "" };
        self.clear_progress();
        self.say(
            &format!("evaluation: step {step}, {right} of {images} right, {percent:.2} %{best}"),
            &Event::Evaluated {
                step,
                right,
                images,
                by_worker: evaluation.by_worker.clone(),
                best: is_best,
            },
        );
    }

    fn count(&self, step: u64, steps: u64, loss: f32, seconds: f64, images: u64) {
        self.metrics.add(Metric::Steps, 1.0);
        self.metrics.set(Metric::Step, (step + 1) as f64);
        self.metrics.set(Metric::JobSteps, steps as f64);
        self.metrics.set(Metric::Loss, f64::from(loss));
        self.metrics.add(Metric::StepSeconds, seconds);
        self.metrics.add(Metric::Images, images as f64);
    }

    /// The job is done.
    pub fn finished(&self) {
        self.clear_progress();
        self.say("Optimization finished.", &Event::Finished {});
    }

    /// The final parameters and the traffic of a parameter server.
    pub fn parameters(&self, hash: &[u8; 32], [received, sent]: [u64; 2]) {
        let sha256 = hex(hash);
        self.say(
            &format!("parameters: sha256:{sha256}"),
            &Event::Parameters { sha256, bytes_received: received, bytes_sent: sent },
        );
    }

    /// What only who asked for JSON hears; the log says it to everybody else.
    pub fn tell(&self, event: impl FnOnce() -> Event) {
        if self.json {
            self.say("", &event());
        }
    }

    fn say(&self, line: &str, event: &Event) {
        let mut stdout = std::io::stdout().lock();
        let said = if self.json { &event.line() } else { line };
        // A role goes on when nobody reads its output.
        let _ = writeln!(stdout, "{said}");
        let _ = stdout.flush();
    }

    fn clear_progress(&self) {
        if self.progress {
            progress::clear();
        }
    }
}

/// Prints the result of a command; a reader that left is no failure.
///
/// # Errors
/// When stdout cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}
