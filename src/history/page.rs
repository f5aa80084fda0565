//! `report.html`: a job's history as one page that needs neither script nor network.

use std::fmt::Write as _;

use crate::history::chart::{Axes, Line, Row, escape, lines, rows, shares};
use crate::history::format::{counted, date, duration, percent, round, share, short, size};
use crate::history::style::STYLE;
use crate::history::timeline::{Lane, lanes};
use crate::history::{Evaluation, Event, EventKind, History, PASSPORT, Participant, Shares};

/// Largest confusion matrix that is drawn; beyond it the classes with most confusion are listed.
const MATRIX_MAX: usize = 20;
/// Rows of a list of confusions.
const CONFUSIONS: usize = 12;

/// The page.
pub fn page(history: &History) -> String {
    let mut html = String::with_capacity(1 << 17);
    html.push_str("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    html.push_str("<meta http-equiv=\"Content-Security-Policy\" ");
    html.push_str("content=\"default-src 'none'; style-src 'unsafe-inline'\">");
    let _ = write!(html, "<title>hfl job {}</title><style>", escape(short(&history.digest)));
    html.push_str(STYLE);
    html.push_str("</style></head><body><main>");
    head(&mut html, history);
    contents(&mut html, history);
    events(&mut html, history);
    curves(&mut html, history);
    if let Some(last) = history.evaluations.last() {
        accuracy(&mut html, history, last);
    }
    time(&mut html, history);
    wire(&mut html, history);
    participants(&mut html, history);
    settings(&mut html, history);
    let _ = write!(
        html,
        "<footer>Written by hfl at {}. Nothing about pictures is in this page beyond counts.</footer>",
        date(history.written)
    );
    html.push_str("</main></body></html>\n");
    html
}

/// What a stranger wants to know in the first ten seconds.
fn head(html: &mut String, history: &History) {
    let last = history.events.iter().rev().map(|event| event.kind);
    let mut ends = last.filter(|kind| {
        matches!(kind, EventKind::Finished | EventKind::Stopped | EventKind::Started)
    });
    let done = history.curve.points().last().map_or(0, |p| p.step.saturating_add(p.count));
    let (class, outcome) = match (history.parameters.is_some(), ends.next()) {
        (true, _) => ("good", "Finished"),
        (false, Some(EventKind::Stopped)) => {
            ("warn", "Stopped by a signal; the same command goes on")
        }
        (false, _) => ("plain", "Running, as of the time below"),
    };
    let model = history.settings.iter().find(|(name, _)| name == "model");
    let model = model.map_or("model", |(_, value)| value);
    let _ = write!(
        html,
        "<header><p class=\"outcome {class}\">{outcome}</p><h1>{} trained by {}</h1>\
         <p class=\"sub\">job <code>{}</code> · began {} · last written {}</p></header>",
        escape(model),
        counted(history.workers.len().max(workers(history)), "worker"),
        escape(short(&history.digest)),
        date(history.began),
        date(history.written)
    );
    let _ = write!(html, "<p class=\"lead\">{}</p>", story(history, done));
    html.push_str("<dl class=\"cards\">");
    let steps = history.steps.map_or(format!("{done}"), |steps| format!("{done} of {steps}"));
    card(html, "steps", &steps);
    if let Some(loss) = history.curve.recent_loss(20) {
        card(html, "loss, last 20 steps", &format!("{loss:.3}"));
    }
    if let Some(evaluation) = history.evaluations.last() {
        card(html, "test accuracy", &percent(evaluation.total()));
    }
    if let Some(rate) = history.curve.throughput() {
        card(html, "images a second", &format!("{rate:.0}"));
    }
    let seconds: f64 = history.curve.points().iter().map(|point| point.seconds).sum();
    card(html, "time in steps", &duration(seconds));
    let [received, sent] = history.bytes;
    card(html, "received, sent", &format!("{}, {}", size(received), size(sent)));
    let away = history.events.iter().filter(|event| event.kind == EventKind::Left).count();
    card(html, "connections lost", &away.to_string());
    html.push_str("</dl>");
    if let Some(parameters) = &history.parameters {
        let _ = write!(
            html,
            "<p class=\"hash\">parameters <code>sha256:{}</code></p>",
            escape(parameters)
        );
    }
    if let Some(passport) = &history.passport {
        let _ = write!(
            html,
            "<p class=\"hash\">passport <a href=\"{PASSPORT}\">{PASSPORT}</a> <code>sha256:{}</code>; whether all of \
             it holds: <code>hfl passport verify DIR</code></p>",
            escape(passport)
        );
    }
}

/// What happened, in a few sentences.
fn story(history: &History, done: u64) -> String {
    let (lanes, span) = lanes(history);
    let steps = history.steps.map_or(counted(done as usize, "step"), |all| {
        format!("{done} of {}", counted(all as usize, "step"))
    });
    let mut story = format!("{steps} in {}.", duration(span));
    let curve = history.curve.points();
    if let (Some(first), Some(last)) = (curve.first(), history.curve.recent_loss(20)) {
        let _ = write!(story, " The loss went from {:.2} to {last:.2}.", first.loss);
    }
    if let Some(last) = history.evaluations.last() {
        let [right, all] = last.total();
        let _ = write!(story, " Of {all} test images {right} are classified right.");
    }
    let starts = history.events.iter().filter(|event| event.kind == EventKind::Started).count();
    if starts > 1 {
        let _ = write!(story, " ps0 was started {starts} times.");
    }
    for Lane { name, spans, .. } in lanes.iter().skip(1).filter(|lane| lane.spans.len() > 1) {
        let away: f64 = spans.windows(2).map(|pair| pair[1].0 - pair[0].1).sum();
        let times = counted(spans.len() - 1, "time");
        let _ = write!(story, " {} was away {times}, for {}.", escape(name), duration(away));
    }
    story
}

/// Links to what there is on the page.
fn contents(html: &mut String, history: &History) {
    let all = [
        ("events", "What happened", true),
        ("curves", "Loss", true),
        ("accuracy", "Accuracy", !history.evaluations.is_empty()),
        ("time", "Time", history.workers.iter().any(|spent| spent.steps > 0)),
        ("wire", "Bytes", history.bytes != [0; 2]),
        ("participants", "Who took part", true),
        ("settings", "Settings", true),
    ];
    html.push_str("<nav>");
    for (id, name, _) in all.into_iter().filter(|(_, _, there)| *there) {
        let _ = write!(html, "<a href=\"#{id}\">{name}</a> ");
    }
    html.push_str("</nav>");
}

fn curves(html: &mut String, history: &History) {
    let points = history.curve.points();
    if points.is_empty() {
        html.push_str("<section id=\"curves\"><h2>Loss</h2><p>No step is done yet.</p></section>");
        return;
    }
    let of = |value: fn(&crate::history::curve::Point) -> f64| {
        let points = points.iter().map(|point| (point.step as f64, value(point))).collect();
        [Line { name: String::new(), points }]
    };
    html.push_str("<section id=\"curves\" class=\"pair\"><figure><h2>Loss</h2>");
    let axes = Axes { title: "loss over steps", x: "step", least: Some((0.0, 0.0)), shown: round };
    html.push_str(&lines(&axes, &of(|point| point.loss)));
    html.push_str("</figure><figure><h2>Learning rate</h2>");
    let axes = Axes { title: "learning rate over steps", ..axes };
    html.push_str(&lines(&axes, &of(|point| point.rate)));
    html.push_str("</figure></section>");
}

fn accuracy(html: &mut String, history: &History, last: &Evaluation) {
    let (axis, unit) = epochs(history).map_or(("step", 1.0), |per_step| ("epoch", per_step));
    let at = |evaluation: &Evaluation| evaluation.step as f64 * unit;
    let all = history.evaluations.iter().map(|found| (at(found), share(found.total())));
    let mut curves = vec![Line { name: "all".into(), points: all.collect() }];
    let several = last.by_worker.iter().filter(|counts| counts[1] > 0).count() > 1;
    for worker in (0..last.by_worker.len().min(5)).filter(|_| several) {
        let points = history.evaluations.iter().filter_map(|evaluation| {
            let counts = *evaluation.by_worker.get(worker)?;
            (counts[1] > 0).then(|| (at(evaluation), share(counts)))
        });
        curves.push(Line { name: format!("worker{worker}"), points: points.collect() });
    }
    html.push_str("<section id=\"accuracy\" class=\"pair\"><div><h2>Accuracy on test images</h2>");
    let axes = Axes {
        title: "accuracy",
        x: axis,
        least: Some((0.0, 1.0)),
        shown: |value| format!("{:.0} %", 100.0 * value),
    };
    html.push_str(&lines(&axes, &curves));
    if several {
        legend(html, "dot", curves.iter().map(|curve| curve.name.as_str()));
    }
    let [right, images] = last.total();
    let _ = write!(
        html,
        "<p>After step {}: {right} of {images} right, {}.</p>",
        last.step,
        percent([right, images])
    );
    html.push_str("</div><div>");
    match last.classes.len() {
        0 => {}
        _ if last.confusion.is_empty() => {}
        1..=MATRIX_MAX => matrix(html, last),
        _ => confusions(html, last),
    }
    html.push_str("</div></section>");
}

/// Epochs in a step, where a job's length is said in epochs.
fn epochs(history: &History) -> Option<f64> {
    let setting = |name: &str| history.settings.iter().find(|(known, _)| known == name);
    let all = history.steps.filter(|steps| *steps > 0 && setting("steps").is_none())?;
    let epochs: f64 = setting("epochs")?.1.parse().ok()?;
    Some(epochs / all as f64)
}

/// Rows are what pictures show, columns what the model says.
fn matrix(html: &mut String, last: &Evaluation) {
    let classes = last.classes.len();
    html.push_str("<h2>Confusion: rows are true, columns predicted</h2>");
    html.push_str("<div class=\"wide\"><table class=\"matrix\"><tr><td></td>");
    for name in &last.classes {
        let _ = write!(html, "<th scope=\"col\"><span>{}</span></th>", escape(name));
    }
    html.push_str("<th scope=\"col\"><span>right</span></th></tr>");
    for (actual, name) in last.classes.iter().enumerate() {
        let row = &last.confusion[actual * classes..(actual + 1) * classes];
        let total = row.iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", escape(name));
        for (predicted, count) in row.iter().enumerate() {
            let part = share([*count, total]);
            let kind = if predicted == actual { "hit" } else { "miss" };
            let _ = write!(html, "<td class=\"{kind}\" style=\"--part:{part:.3}\">{count}</td>");
        }
        let _ = write!(html, "<td class=\"total\">{}</td></tr>", percent([row[actual], total]));
    }
    html.push_str("</table></div>");
}

fn confusions(html: &mut String, last: &Evaluation) {
    let classes = last.classes.len();
    let mut wrong: Vec<(u64, usize, usize)> = (0..classes * classes)
        .map(|at| (last.confusion[at], at / classes, at % classes))
        .filter(|(count, actual, predicted)| *count > 0 && actual != predicted)
        .collect();
    wrong.sort_unstable_by(|a, b| b.cmp(a));
    html.push_str("<h2>Most frequent confusions</h2><table><tr><th>true</th><th>predicted</th><th>images</th></tr>");
    for (count, actual, predicted) in wrong.into_iter().take(CONFUSIONS) {
        let [actual, predicted] = [actual, predicted].map(|at| escape(&last.classes[at]));
        let _ = write!(html, "<tr><td>{actual}</td><td>{predicted}</td><td>{count}</td></tr>");
    }
    html.push_str("</table>");
}

fn time(html: &mut String, history: &History) {
    let told: Vec<_> =
        history.workers.iter().enumerate().filter(|(_, shares)| shares.steps > 0).collect();
    if told.is_empty() {
        return;
    }
    html.push_str(
        "<section id=\"time\"><h2>Where the time of a step goes</h2><table class=\"bars\">",
    );
    for (worker, spent) in &told {
        let parts = spent.parts(updates_of(history, spent));
        let seconds: f64 = parts.iter().map(|part| part.1).sum();
        let _ = write!(
            html,
            "<tr><th scope=\"row\">worker{worker}</th><td>{}</td><td class=\"total\">{:.3} s, {} images</td></tr>",
            shares(&parts),
            seconds / spent.steps as f64,
            spent.images
        );
    }
    html.push_str("</table>");
    legend(html, "part", told[0].1.parts(0.0).map(|part| part.0).into_iter());
    html.push_str("</section>");
}

/// What the network carried, and whose it was.
fn wire(html: &mut String, history: &History) {
    if history.bytes == [0; 2] {
        return;
    }
    html.push_str(
        "<section id=\"wire\"><h2>Bytes on the wire</h2><table class=\"list\">\
         <tr><th></th><th>to ps0</th><th>from ps0</th></tr>",
    );
    let mut row = |name: &str, [received, sent]: [u64; 2]| {
        let [received, sent] = [size(received), size(sent)];
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{name}</th><td>{received}</td><td>{sent}</td></tr>"
        );
    };
    for (worker, bytes) in history.worker_bytes.iter().enumerate() {
        row(&format!("worker{worker}"), *bytes);
    }
    row("all", history.bytes);
    html.push_str(
        "</table><p>As the sockets carried them: encrypted, with handshakes and evidence.</p>",
    );
    html.push_str("</section>");
}

/// Of ps0's updates those that a worker waited for: each step has one, and none follows the last.
fn updates_of(history: &History, spent: &Shares) -> f64 {
    let points = history.curve.points().iter();
    let steps = points.map(|point| point.count).fold(0, u64::saturating_add).max(1);
    history.updates * (spent.steps as f64 / steps as f64).min(1.0)
}

fn events(html: &mut String, history: &History) {
    html.push_str("<section id=\"events\"><h2>What happened</h2>");
    let (lanes, end) = lanes(history);
    let drawn = lanes.iter().map(|Lane { name, spans, marks }| {
        let marks = marks.iter().map(|(at, kind)| (*at, class(*kind), kind.name())).collect();
        Row { name, spans, marks }
    });
    let drawn: Vec<Row> = drawn.collect();
    html.push_str(&rows("who took part when", end, duration, &drawn));
    html.push_str("<p class=\"legend marks\"><span class=\"there\">took part</span>");
    for kind in [EventKind::Checkpoint, EventKind::Left, EventKind::Reattested, EventKind::Finished]
    {
        if history.events.iter().any(|event| event.kind == kind) {
            let _ = write!(html, "<span class=\"{}\">{}</span>", class(kind), kind.name());
        }
    }
    html.push_str("</p>");
    // Checkpoints are on the time line; a list of them says nothing more.
    let routine = |event: &&Event| event.kind == EventKind::Checkpoint;
    let checkpoints = history.events.iter().filter(routine).count();
    html.push_str(
        "<table class=\"list\"><tr><th>time (UTC)</th><th>step</th><th>event</th><th></th></tr>",
    );
    for event in history.events.iter().filter(|event| !routine(event)) {
        let _ = write!(
            html,
            "<tr class=\"{}\"><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            class(event.kind),
            date(event.time),
            event.step,
            event.kind.name(),
            escape(&event.detail)
        );
    }
    html.push_str("</table><p>");
    if let Some(last) = history.events.iter().rev().find(routine) {
        let written = counted(checkpoints, "checkpoint");
        let _ = write!(html, "{written}, the last of step {} at {}. ", last.step, date(last.time));
    }
    if history.events_dropped > 0 {
        let _ = write!(html, "{} events in the middle are not kept.", history.events_dropped);
    }
    html.push_str("</p></section>");
}

/// How an event looks.
fn class(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Checkpoint => "checkpoint",
        EventKind::Finished => "finished",
        EventKind::Joined => "joined",
        EventKind::Left => "left",
        EventKind::Reattested => "reattested",
        EventKind::Returned => "returned",
        EventKind::Started => "started",
        EventKind::Stopped => "stopped",
    }
}

/// Somebody's admissions with the same measurements, as one.
struct Admitted<'a> {
    first: &'a Participant,
    times: usize,
    last: &'a Participant,
}

fn participants(html: &mut String, history: &History) {
    html.push_str("<section id=\"participants\"><h2>Who took part</h2>");
    if history.participants.is_empty() {
        html.push_str("<p>Nobody was admitted yet.</p></section>");
        return;
    }
    html.push_str("<p>Each was admitted by evidence that roster.json holds; ");
    html.push_str("<code>hfl roster</code> judges it again.</p>");
    let same = |a: &Participant, b: &Participant| {
        (&a.role, &a.status, &a.platform, &a.measurements)
            == (&b.role, &b.status, &b.platform, &b.measurements)
    };
    let mut all: Vec<Admitted> = Vec::new();
    for participant in &history.participants {
        match all.iter_mut().find(|known| same(known.first, participant)) {
            Some(known) => (known.times, known.last) = (known.times + 1, participant),
            None => all.push(Admitted { first: participant, times: 1, last: participant }),
        }
    }
    html.push_str(
        "<div class=\"wide\"><table class=\"list\"><tr><th>role</th><th>TCB status</th>\
         <th>platform</th><th>since (UTC)</th><th>admitted</th><th>MRTD</th></tr>",
    );
    for Admitted { first, times, .. } in &all {
        let mr_td = first.measurements.iter().find(|(name, _)| name == "MRTD");
        let mr_td = mr_td.map_or("", |(_, value)| short(value));
        let platform = if first.platform.is_empty() { "\u{2013}" } else { &first.platform };
        let _ = write!(
            html,
            "<tr><td><b>{}</b></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td><code>{}</code></td></tr>",
            escape(&first.role),
            escape(&first.status),
            escape(platform),
            date(first.since),
            if *times == 1 { "once".into() } else { format!("{times} times") },
            escape(mr_td)
        );
    }
    html.push_str("</table></div>");
    all.iter().for_each(|admitted| measured(html, admitted));
    html.push_str("</section>");
}

/// Everything that somebody's evidence says.
fn measured(html: &mut String, Admitted { first, last, .. }: &Admitted) {
    let _ = write!(
        html,
        "<details><summary>{}: measurements and key</summary><dl>",
        escape(&first.role)
    );
    let fixed = [("platform (FMSPC)", first.platform.as_str()), ("key sha256", last.key.as_str())];
    let named = first.measurements.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in named.chain(fixed).filter(|(_, value)| !value.is_empty()) {
        let _ = write!(html, "<dt>{}</dt><dd><code>{}</code></dd>", escape(name), escape(value));
    }
    html.push_str("</dl></details>");
}

fn settings(html: &mut String, history: &History) {
    html.push_str("<section id=\"settings\"><h2>Settings</h2><dl class=\"settings\">");
    let _ = write!(html, "<dt>digest</dt><dd><code>{}</code></dd>", escape(&history.digest));
    for (name, value) in &history.settings {
        let _ = write!(html, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    }
    html.push_str("</dl></section>");
}

fn card(html: &mut String, name: &str, value: &str) {
    let _ = write!(html, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(value));
}

fn legend<'a>(html: &mut String, class: &str, names: impl Iterator<Item = &'a str>) {
    html.push_str("<p class=\"legend\">");
    for (number, name) in names.enumerate() {
        let _ = write!(
            html,
            "<span><svg viewBox=\"0 0 10 10\">\
             <rect class=\"{class}{number}\" width=\"10\" height=\"10\"/></svg> {}</span>",
            escape(name)
        );
    }
    html.push_str("</p>");
}

/// Workers that the settings speak of, before any has told its times.
fn workers(history: &History) -> usize {
    let setting = history.settings.iter().find(|(name, _)| name == "workers");
    setting.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// For the fuzzer: what parses is shown, and reads back.
pub fn fuzz(bytes: &[u8]) {
    if let Ok(history) = History::parse(bytes) {
        let shown = page(&history);
        assert!(!shown.contains("<script"));
        // Not every finite decimal survives, so only the form is compared.
        assert!(History::parse(&history.encode()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::curve::Point;

    fn full() -> History {
        let settings = vec![("model".into(), "resnet50".into()), ("workers".into(), "2".into())];
        let mut history = History::new("ab".repeat(32), settings, 1_700_000_000);
        history.steps = Some(50);
        for step in 0..50 {
            let loss = 2.3 / (1.0 + step as f32);
            history.curve.push(Point::step(step, loss, 0.03, 0.5, 256));
        }
        for worker in 0..2 {
            let spent = Shares {
                steps: 50,
                images: 6400,
                forward: 8.0,
                backward: 14.0,
                push: 1.0,
                waiting: 1.5,
                pull: 0.5,
            };
            history.spend(worker, spent);
        }
        let kinds = [EventKind::Started, EventKind::Joined, EventKind::Left, EventKind::Returned];
        for (at, kind) in kinds.into_iter().enumerate() {
            let detail = "worker1 <script>alert(1)</script>".into();
            history.note(Event { time: 1_700_000_000 + at as u64, step: at as u64, kind, detail });
        }
        history.admit(Participant {
            role: "worker0".into(),
            since: 1_700_000_000,
            status: "UpToDate".into(),
            measurements: vec![("MRTD".into(), "00".repeat(48))],
            platform: "FMSPC 50806f000000".into(),
            key: "11".repeat(32),
        });
        history.evaluated(Evaluation {
            step: 50,
            by_worker: vec![[3, 4], [2, 4]],
            classes: vec!["cat".into(), "<dog>".into()],
            confusion: vec![3, 1, 2, 2],
        });
        history
    }

    #[test]
    fn every_section_is_there_and_nothing_breaks_out() {
        let html = page(&full());
        for id in ["curves", "accuracy", "time", "events", "participants", "settings"] {
            assert_eq!(html.matches(&format!("<section id=\"{id}\"")).count(), 1, "{id}");
        }
        assert!(!html.contains("<script") && !html.contains("<dog>"));
        assert!(html.contains("62.5 %") && html.contains("50 of 50"));
        for tag in ["section", "table", "dl", "figure", "details", "svg", "main"] {
            let opened = html.matches(&format!("<{tag}>")).count()
                + html.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        // Nothing is fetched.
        assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("url("));
    }

    #[test]
    fn an_empty_history_and_many_classes_are_shown() {
        let empty = page(&History::new(String::new(), Vec::new(), 0));
        assert!(empty.contains("No step is done yet") && empty.contains("Nobody was admitted"));
        let mut history = full();
        let classes: Vec<String> = (0..100).map(|class| format!("class {class}")).collect();
        let mut confusion = vec![0; 10_000];
        confusion[7 * 100 + 9] = 5;
        history.evaluated(Evaluation { step: 60, by_worker: vec![[0, 5]], classes, confusion });
        let html = page(&history);
        assert!(html.contains("<td>class 7</td><td>class 9</td><td>5</td>"));
        assert!(!html.contains("class=\"matrix\""));
    }

    #[test]
    fn accuracy_is_over_epochs_where_a_job_counts_in_them() {
        let mut history = full();
        history.evaluations[0].step = 25;
        assert!(
            page(&history).contains("aria-label=\"accuracy\"")
                && !page(&history).contains(">epoch<")
        );
        history.settings.push(("epochs".into(), "10".into()));
        assert_eq!(epochs(&history), Some(0.2));
        assert!(page(&history).contains(">epoch<"));
        history.settings.push(("steps".into(), "50".into()));
        assert_eq!(epochs(&history), None);
    }
}
