//! The witness: a secret service that is told of every checkpoint, and says at a start which was the last.
//!
//! Who has the disk can put back all of it, header and manifest included, or so much of it that no model seems to be
//! there; what the service wrote down is out of reach. Of what it was not told yet, a connection that is cut by the
//! same host, at most the checkpoints since then can be taken away: the log says which step was told last.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use protocol::Config;

use crate::failure::Failure;
use crate::training::roles::options::Options;
use crate::trust::witness::Telling;

/// How long a checkpoint is tried to be told of: the next one says more, and a role that ends waits for the last.
const WAIT: Duration = Duration::from_secs(10);

/// Tells the service in a thread of its own: training does not wait for it.
pub(super) struct Witness {
    steps: Sender<u64>,
    thread: JoinHandle<()>,
}

impl Witness {
    /// Asks the service that has the passphrase of the model's volume, if there is one, and goes on telling it.
    ///
    /// # Errors
    /// When it does not answer, or knows of a later step of this job than there is a checkpoint of.
    pub(super) fn ask(
        options: &Options,
        config: &Arc<Config>,
        job: [u8; 32],
        step: u64,
    ) -> Result<Option<Self>, Failure> {
        let (Some(service), Some(path)) = (&options.service, &options.place.volume) else {
            return Ok(None);
        };
        let Some(telling) = Telling::new(service, job) else { return Ok(None) };
        let last = telling.tell(config, step)?;
        if last > step {
            return Err(Failure::new(format!(
                "{}: the saved model is of step {step}, and the secret service was told of {last}: it was set back",
                path.display()
            ))
            .hint("the volume as it was last; to begin anew on purpose, another --seed"));
        }
        let (steps, told) = channel();
        let telling = telling.whatever_happens(WAIT);
        let config = Arc::clone(config);
        let thread = thread::spawn(move || tell(&told, &config, &telling));
        Ok(Some(Self { steps, thread }))
    }

    /// A checkpoint of this step is on the disk.
    pub(super) fn saved(&self, step: u64) {
        // It ends with the last sender only.
        let _ = self.steps.send(step);
    }

    /// Waits until the last checkpoint was told of, or cannot be.
    pub(super) fn finish(self) {
        drop(self.steps);
        let _ = self.thread.join();
    }
}

/// Tells of the last of the steps that came, until no more can come.
fn tell(steps: &Receiver<u64>, config: &Arc<Config>, telling: &Telling) {
    while let Ok(first) = steps.recv() {
        let step = steps.try_iter().last().unwrap_or(first);
        match telling.tell(config, step) {
            Ok(_) => log::info!("the secret service knows of step {step}"),
            Err(failure) => log::warn!(
                "{failure}\nuntil it is told of step {step}, the volume can be set back to before unnoticed"
            ),
        }
    }
}
