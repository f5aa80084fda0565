//! `--json`: what a role says on stdout, one object a line. This file is the schema; `hfl help events` prints it as
//! a JSON Schema, and a test holds the two together.
//!
//! Every line has `v`, the version of this schema, `time`, in seconds since 1970, and `event`. A version gains
//! events and fields; whoever reads passes over what it does not know. What changes or goes makes another version.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the lines.
pub const VERSION: u32 = 1;

/// The same as a JSON Schema (draft 2020-12).
pub const SCHEMA: &str = include_str!("events.schema.json");

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase", deny_unknown_fields)]
pub enum Event {
    /// ps0: a checkpoint is on the disk.
    Checkpoint {
        /// Updates that it has.
        step: u64,
        /// How long it took to write.
        seconds: f64,
    },
    /// ps0: workers have tried the model on their test images.
    Evaluated {
        /// Updates that it has.
        step: u64,
        /// Images whose class was found.
        right: u64,
        /// All of them.
        images: u64,
        /// The same two numbers of each worker.
        by_worker: Vec<[u64; 2]>,
        /// Whether none was better before.
        best: bool,
    },
    /// The job is done.
    Finished {},
    /// ps0: a worker takes part from now on.
    Joined {
        /// Its role.
        worker: String,
        /// Whether it did before.
        returns: bool,
        /// Samples that it has.
        samples: u64,
    },
    /// ps0: a worker's connection ended before the job did.
    Left {
        /// Its role.
        worker: String,
        /// Why.
        why: String,
        /// Rounds that it contributed to so far.
        rounds: u64,
        /// Samples that it contributed to these.
        samples: u64,
    },
    /// ps0: workers may connect.
    Listening {
        /// Where.
        address: String,
    },
    /// ps0: the final parameters.
    Parameters {
        /// SHA-256 over the flat buffer, in hexadecimal.
        sha256: String,
        /// Bytes that came from workers.
        bytes_received: u64,
        /// Bytes that went to them.
        bytes_sent: u64,
    },
    /// A peer's evidence was accepted anew, while its connection lasts.
    Reattested {
        /// Its role.
        peer: String,
        /// How often it was, with the first time.
        times: u64,
    },
    /// ps0: the gradients of all workers are in, and the parameters updated.
    Round {
        /// Counted from 0.
        step: u64,
        /// Learning rate of the update.
        rate: f64,
        /// How many workers' gradients are in it.
        workers: u16,
        /// How long the update took.
        update_seconds: f64,
        /// Bytes that came from workers so far.
        bytes_received: u64,
        /// Bytes that went to them so far.
        bytes_sent: u64,
    },
    /// The job is known and begins, or goes on.
    Started {
        /// Our role.
        role: String,
        /// Version of this program.
        program: String,
        /// Digest of the job, in hexadecimal.
        job: String,
    },
    /// A step is done: at a worker its own, at ps0 that of all.
    Step {
        /// Counted from 0.
        step: u64,
        /// Steps of the whole job.
        steps: u64,
        /// Mean loss of the batch; nothing where it is no number.
        loss: Option<f32>,
        /// Since the step before.
        seconds: f64,
        /// Images in it.
        images: u64,
    },
    /// A peer's evidence was accepted.
    Verified {
        /// Its role.
        peer: String,
    },
}

impl Event {
    /// The line, as of now.
    pub fn line(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = serde_json::to_value(self).expect("plain text and numbers");
        // Milliseconds: more says nothing, and a shorter number reads better.
        line["time"] = (now.as_millis() as f64 / 1e3).into();
        line["v"] = VERSION.into();
        line.to_string()
    }

    /// What a line says, exactly by this version: for tests, and for who wants to know.
    ///
    /// # Errors
    /// What about it is not as the schema has it.
    pub fn parse(line: &str) -> Result<(f64, Self), String> {
        let mut value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let object = value.as_object_mut().ok_or("no object")?;
        if object.remove("v") != Some(VERSION.into()) {
            return Err(format!("not of version {VERSION}"));
        }
        let time = object.remove("time").and_then(|time| time.as_f64()).ok_or("no time")?;
        let event = serde_json::from_value(value).map_err(|error| error.to_string())?;
        Ok((time, event))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn one_of_each() -> Vec<Event> {
        let text = || "x".to_owned();
        vec![
            Event::Checkpoint { step: 1, seconds: 0.5 },
            Event::Evaluated { step: 1, right: 2, images: 3, by_worker: vec![[2, 3]], best: true },
            Event::Finished {},
            Event::Joined { worker: text(), returns: true, samples: 3 },
            Event::Left { worker: text(), why: text(), rounds: 1, samples: 2 },
            Event::Listening { address: text() },
            Event::Parameters { sha256: "0".repeat(64), bytes_received: 1, bytes_sent: 2 },
            Event::Reattested { peer: text(), times: 2 },
            Event::Round {
                step: 0,
                rate: 0.1,
                workers: 2,
                update_seconds: 0.1,
                bytes_received: 1,
                bytes_sent: 2,
            },
            Event::Started { role: text(), program: text(), job: "0".repeat(64) },
            Event::Step { step: 0, steps: 2, loss: Some(1.5), seconds: 0.1, images: 4 },
            Event::Verified { peer: text() },
        ]
    }

    #[test]
    fn lines_read_back_and_what_is_not_in_the_schema_does_not() {
        for event in one_of_each() {
            let line = event.line();
            let (time, read) = Event::parse(&line).expect(&line);
            assert!(read == event && time > 1.6e9, "{line}");
            assert!(Event::parse(&line.replace("\"v\":1", "\"v\":2")).is_err());
            assert!(Event::parse(&line.replace("\"v\":1", "\"v\":1,\"more\":0")).is_err());
        }
        let lost = Event::Step { step: 0, steps: 2, loss: None, seconds: 0.1, images: 4 };
        assert_eq!(Event::parse(&lost.line()).map(|(_, event)| event), Ok(lost));
    }

    #[test]
    fn the_schema_has_these_events_with_these_fields() {
        let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
        let listed = schema["oneOf"].as_array().expect("events").iter().map(|event| {
            assert_eq!(event["additionalProperties"], false);
            let fields = &event["properties"];
            let mut names: Vec<String> =
                fields.as_object().expect("fields").keys().cloned().collect();
            let mut required: Vec<String> =
                serde_json::from_value(event["required"].clone()).expect("names");
            names.sort();
            required.sort();
            assert_eq!(names, required);
            (fields["event"]["const"].as_str().expect("a name").to_owned(), names)
        });
        let listed: BTreeMap<String, Vec<String>> = listed.collect();
        let said = one_of_each().into_iter().map(|event| {
            let line: BTreeMap<String, Value> = serde_json::from_str(&event.line()).expect("JSON");
            (line["event"].as_str().expect("a name").to_owned(), line.into_keys().collect())
        });
        assert_eq!(listed, said.collect());
    }
}
