//! What a job tells those who watch it: lines of `--json` by their schema, and the page as Chromium shows it, of a
//! job of three roles in which a worker died and came back.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use hfl::events::Event;
use hfl::history::{self, Bytes, EventKind, History};

use crate::cli::hfl;
use crate::processes::{Cast, Dir, Process, STEPS};

/// Reads until an event that is looked for, or to the end; every line has to be as the schema says.
fn read(role: &Process, until: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(line) = role.next_line() {
        let (_, event) = Event::parse(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        events.push(event);
        if events.last().is_some_and(&until) {
            break;
        }
    }
    events
}

fn names(events: &[Event]) -> BTreeSet<String> {
    let lines = events.iter().map(|event| serde_json::to_value(event).expect("an event"));
    lines.map(|line| line["event"].as_str().expect("a name").to_owned()).collect()
}

/// Runs the job; what ps0 said.
fn job(cast: &Cast) -> Vec<Event> {
    let json = ("--json", "");
    let options = [json, ("--report", "html"), ("--evaluate-every", "1")];
    let ps0 = cast.start("ps0", &options);
    let slow = ("--pause-ms", "100");
    let worker0 = cast.start("worker0", &[json, slow]);
    let worker1 = cast.start("worker1", &[json, slow]);
    let mut said = read(&ps0, |event| matches!(event, Event::Round { step: 2, .. }));
    worker1.kill();
    said.extend(read(&ps0, |event| matches!(event, Event::Left { .. })));
    let worker1 = cast.start("worker1", &[json]);
    said.extend(read(&ps0, |_| false));
    assert_eq!(ps0.end().0, 0);
    for worker in [worker0, worker1] {
        let said = names(&read(&worker, |_| false));
        assert_eq!(said, ["finished", "started", "step", "verified"].map(str::to_owned).into());
        assert_eq!(worker.end().0, 0);
    }
    said
}

/// What Chromium prints to stdout and stderr.
fn chromium(dir: &Dir, flags: &[&str], page: &Path) -> (String, String) {
    let profile = format!("--user-data-dir={}", dir.path("chromium").display());
    // The sandbox needs namespaces that a container may not give, and the page is ours.
    let headless = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"];
    let output = Command::new("chromium")
        .args(headless)
        .args(["--no-first-run", "--virtual-time-budget=1000", &profile])
        .args(flags)
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("chromium (.ci/setup.sh installs it)");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

/// Values of an attribute.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!(" {name}=\"");
    html.split(&begin).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// What crossed the wire, in all and by worker: gradients and parameters at the least.
fn bytes_add_up(history: &History) {
    let Bytes { all, by_worker } = history.bytes();
    assert!(all.iter().all(|bytes| *bytes > STEPS * 2 * 90_000_000), "{all:?}");
    let sum = by_worker.iter().fold([0; 2], |sum, more| [sum[0] + more[0], sum[1] + more[1]]);
    assert!(
        by_worker.len() == 2 && sum[0] <= all[0] && sum[1] <= all[1],
        "{by_worker:?} of {all:?}"
    );
    assert!(
        by_worker.as_flattened().iter().all(|bytes| *bytes > STEPS * 90_000_000),
        "{by_worker:?}"
    );
}

#[test]
fn a_job_tells_what_happened_in_lines_and_on_a_page() {
    let dir = Dir::new("report");
    let cast = Cast::new(&dir, "model");
    let said = job(&cast);
    let all = [
        "checkpoint",
        "evaluated",
        "finished",
        "joined",
        "left",
        "listening",
        "parameters",
        "round",
        "started",
        "step",
        "verified",
    ];
    assert_eq!(names(&said), all.map(str::to_owned).into());
    let returns = |event: &&Event| matches!(event, Event::Joined { returns: true, .. });
    assert_eq!(said.iter().filter(returns).count(), 1);

    let model = dir.path("model");
    let history = fs::read(model.join(history::FILE)).expect("a history");
    let history = History::parse(&history).expect("a history");
    let kinds: Vec<EventKind> = history.events.iter().map(|event| event.kind).collect();
    for (kind, times) in [(EventKind::Joined, 2), (EventKind::Left, 1), (EventKind::Returned, 1)] {
        assert_eq!(kinds.iter().filter(|known| **known == kind).count(), times, "{kind:?}");
    }
    let [worker0, worker1] = history.workers[..] else { panic!("times of two workers") };
    assert_eq!((worker0.steps, worker0.images), (STEPS, STEPS * 4));
    // The step under way when worker1 died is in nobody's books, or in both processes'.
    assert!(worker1.steps.abs_diff(STEPS) <= 1, "{worker1:?}");
    assert!(worker0.forward > 0.0 && worker0.backward > 0.0 && worker0.waiting > 0.0);
    bytes_add_up(&history);

    let page = model.join(history::REPORT);
    let (html, log) = chromium(&dir, &["--dump-dom"], &page);
    assert!(!log.contains("CONSOLE"), "{log}");
    let ids = attributes(&html, "id");
    let links = attributes(&html, "href");
    assert!(links.len() >= 5, "{links:?}");
    for link in links {
        // Within the page, or to the passport beside it.
        let leads = match link.strip_prefix('#') {
            Some(target) => ids.contains(&target),
            None => !link.contains('/') && model.join(link).is_file(),
        };
        assert!(leads, "{link} leads nowhere");
    }
    for section in ["events", "curves", "accuracy", "time", "wire", "participants", "settings"] {
        assert!(ids.contains(&section), "no section {section}");
    }
    let pdf = dir.path("report.pdf");
    chromium(&dir, &[&format!("--print-to-pdf={}", pdf.display())], &page);
    let pdf = fs::read(pdf).expect("a PDF");
    assert!(pdf.starts_with(b"%PDF-") && pdf.len() > 10_000);

    let events = dir.path("events");
    let [model, out, events] = [&model, &dir.path("again.html"), &events]
        .map(|path| path.to_str().expect("UTF-8").to_owned());
    let again = hfl(&["report", "--model-dir", &model, "--out", &out, "--tensorboard", &events]);
    assert!(again.status.success());
    assert_eq!(fs::read(&out).expect("a page"), fs::read(&page).expect("a page"));
}
