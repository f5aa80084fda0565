//! The log of a service: a JSON object a line, each with the SHA-256 of the line before it.
//!
//! A line is on the disk before what it tells of happens. Cutting off the end of the log shows only to
//! who has noted its last hash, which the service prints when it starts.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use protocol::hex;

/// Longest line: ours are below 1 KiB, and a log may have been replaced by anything.
const LINE_LEN_MAX: u64 = 8 << 10;

/// What a line tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Event {
    /// The service began, or read its files again.
    Loaded,
    /// A secret was given out.
    Released,
    /// A secret was not given out, or a peer was not verified.
    Refused,
    /// A server told of the last checkpoint in its volume.
    Witnessed,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// Lines before it.
    pub(super) number: u64,
    /// When, in UTC.
    pub(super) time: String,
    pub(super) event: Event,
    pub(super) app_id: Option<String>,
    pub(super) address: Option<String>,
    pub(super) role: Option<String>,
    /// Measurement of the peer's TD.
    pub(super) mr_td: Option<String>,
    /// Hash of the peer's key.
    pub(super) key: Option<String>,
    pub(super) reason: Option<String>,
    /// Digest of the job whose checkpoint was told of, and its step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) job: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) step: Option<u64>,
    /// SHA-256 of the line before, zeros in the first.
    pub(super) previous: String,
}

impl Record {
    /// A line without a peer; number and hash are set when it is written.
    pub(super) fn new(event: Event, time: String) -> Self {
        Self {
            number: 0,
            time,
            event,
            app_id: None,
            address: None,
            role: None,
            mr_td: None,
            key: None,
            reason: None,
            job: None,
            step: None,
            previous: String::new(),
        }
    }
}

/// A log whose lines follow from one another.
#[derive(Debug)]
pub(super) struct Audit {
    file: File,
    head: String,
    count: u64,
    released: BTreeMap<String, u64>,
    /// The last step of each job, by the secret of its volume and its digest.
    steps: BTreeMap<(String, String), u64>,
}

impl Audit {
    /// Opens a log to write on, made if it is not there. A last line that a crash cut short told of
    /// something that did not happen; it is taken away.
    ///
    /// # Errors
    /// When it cannot be read or written, or its lines do not follow from one another.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
        // One that was there already may have been made by anybody's rules.
        let there = file.metadata()?;
        if there.is_file() && there.permissions().mode() & 0o077 != 0 {
            match file.set_permissions(Permissions::from_mode(0o600)) {
                Ok(()) => log::warn!("{}: others could read it, and cannot now", path.display()),
                Err(error) => log::warn!("{}: others can read it: {error}", path.display()),
            }
        }
        // Two services would not know what the other gave out.
        file.try_lock().map_err(|_| io::Error::other("another service writes it"))?;
        let (audit, complete) = Self::check(file)?;
        if complete < audit.file.metadata()?.len() {
            log::warn!("{}: a line that a crash cut short is removed", path.display());
            audit.file.set_len(complete)?;
        }
        Ok(audit)
    }

    /// Reads a log that is complete.
    ///
    /// # Errors
    /// When it cannot be read, or its lines do not follow from one another.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let (audit, complete) = Self::check(File::open(path)?)?;
        match complete == audit.file.metadata()?.len() {
            true => Ok(audit),
            false => Err(io::Error::other("its last line is incomplete")),
        }
    }

    /// Lines.
    pub(super) fn len(&self) -> u64 {
        self.count
    }

    /// SHA-256 of the last line.
    pub(super) fn head(&self) -> &str {
        &self.head
    }

    /// How often a secret was given out.
    pub(super) fn released(&self, app_id: &str) -> u64 {
        self.released.get(app_id).copied().unwrap_or(0)
    }

    /// The last step of a job that a server told of.
    pub(super) fn witnessed(&self, app_id: &str, job: &str) -> u64 {
        self.steps.get(&(app_id.to_owned(), job.to_owned())).copied().unwrap_or(0)
    }

    /// Writes a line and waits until it is on the disk.
    ///
    /// # Errors
    /// When the system refuses: what the line tells of may not happen then.
    pub(super) fn append(&mut self, mut record: Record) -> io::Result<()> {
        record.number = self.count;
        record.previous.clone_from(&self.head);
        let mut line = serde_json::to_vec(&record).map_err(io::Error::other)?;
        let head = hex(digest(&SHA256, &line).as_ref());
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        self.follow(record, head);
        Ok(())
    }

    fn follow(&mut self, record: Record, head: String) {
        (self.count, self.head) = (self.count + 1, head);
        let Some(app_id) = record.app_id else { return };
        match (record.event, record.job, record.step) {
            (Event::Released, ..) => *self.released.entry(app_id).or_insert(0) += 1,
            (Event::Witnessed, Some(job), Some(step)) => {
                let last = self.steps.entry((app_id, job)).or_insert(0);
                *last = step.max(*last);
            }
            _ => {}
        }
    }

    /// The log, and its length without an incomplete last line.
    fn check(file: File) -> io::Result<(Self, u64)> {
        let mut reader = BufReader::new(file.try_clone()?);
        let (released, steps) = (BTreeMap::new(), BTreeMap::new());
        let mut audit = Self { file, head: hex(&[0; 32]), count: 0, released, steps };
        let mut complete = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            let len = io::Read::take(&mut reader, LINE_LEN_MAX).read_until(b'\n', &mut line)?;
            let Some((b'\n', text)) = line.split_last() else {
                return match len as u64 == LINE_LEN_MAX {
                    true => Err(io::Error::other(format!("line {} is too long", audit.count + 1))),
                    false => Ok((audit, complete)),
                };
            };
            let broken = |what| {
                io::Error::other(format!("line {} {what}: the log was changed", audit.count + 1))
            };
            let record: Record = serde_json::from_slice(text).map_err(|_| broken("is no entry"))?;
            if record.number != audit.count || record.previous != audit.head {
                return Err(broken("does not follow from the one before"));
            }
            complete += len as u64;
            let head = hex(digest(&SHA256, text).as_ref());
            audit.follow(record, head);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn log(name: &str, lines: usize) -> (PathBuf, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("hfl-audit-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut audit = Audit::open(&path).expect("new");
        for number in 0..lines {
            let mut record = Record::new(Event::Released, "now".into());
            record.app_id = Some(format!("app{}", number % 2));
            audit.append(record).expect("written");
        }
        let bytes = std::fs::read(&path).expect("read");
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "who asked for what is nobody else's");
        (path, bytes)
    }

    #[test]
    fn a_log_that_others_could_read_is_closed_to_them() {
        let (path, _) = log("open", 1);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("ours");
        assert_eq!(Audit::open(&path).expect("whole").len(), 1);
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn a_log_goes_on_after_a_restart_and_counts_releases() {
        let (path, bytes) = log("restart", 3);
        let mut audit = Audit::open(&path).expect("whole");
        assert_eq!((audit.len(), audit.released("app0"), audit.released("app1")), (3, 2, 1));
        audit.append(Record::new(Event::Refused, "later".into())).expect("written");
        assert_eq!(Audit::read(&path).expect("whole").len(), 4);
        let other = Audit::open(&path).expect_err("one writer").to_string();
        assert!(other.contains("another service"), "{other}");
        drop(audit);
        // A crash in the middle of a line.
        let more = std::fs::read(&path).expect("read");
        for cut in bytes.len() + 1..more.len() {
            std::fs::write(&path, &more[..cut]).expect("write");
            assert!(Audit::read(&path).is_err());
            assert_eq!(Audit::open(&path).expect("cut").len(), 3);
            assert_eq!(std::fs::read(&path).expect("read"), bytes);
        }
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn the_last_step_of_a_job_is_kept_whatever_is_told_later() {
        let (path, _) = log("steps", 1);
        let mut audit = Audit::open(&path).expect("whole");
        for (app, job, step) in [("a", "1", 4), ("a", "2", 9), ("b", "1", 7), ("a", "1", 3)] {
            let mut record = Record::new(Event::Witnessed, "now".into());
            record.app_id = Some(app.into());
            (record.job, record.step) = (Some(job.into()), Some(step));
            audit.append(record).expect("written");
        }
        drop(audit);
        let audit = Audit::open(&path).expect("whole");
        let of = |app, job| audit.witnessed(app, job);
        assert_eq!([of("a", "1"), of("a", "2"), of("b", "1"), of("b", "2")], [4, 9, 7, 0]);
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn changed_missing_and_swapped_lines_are_noticed() {
        let (path, bytes) = log("changed", 3);
        let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
        let changed = String::from_utf8(bytes.clone()).expect("JSON").replacen("app0", "app9", 1);
        for text in [
            changed.as_bytes(),
            &[lines[1], lines[2]].concat(),
            &[lines[0], lines[2]].concat(),
            &[lines[0], lines[2], lines[1]].concat(),
            &[lines[0], lines[0]].concat(),
            &vec![b'x'; 9000],
            b"{}\n",
        ] {
            std::fs::write(&path, text).expect("write");
            assert!(Audit::open(&path).is_err());
            assert_eq!(std::fs::read(&path).expect("read"), text, "an odd log is left as it is");
        }
        std::fs::remove_file(&path).expect("remove");
    }
}
