//! Who was there when: lanes of a time line, from the events of a job.

use crate::history::{Event, EventKind, History};

/// Most lanes that are drawn: ps0's and those of a job's workers.
const LANES_MAX: usize = 65;

/// Somebody's part of the time line.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    /// Role.
    pub name: String,
    /// From when to when it took part, in seconds since the job began.
    pub spans: Vec<(f64, f64)>,
    /// Moments, in the same seconds.
    pub marks: Vec<(f64, EventKind)>,
}

/// The lanes, ps0's first, and the seconds that they span.
pub fn lanes(history: &History) -> (Vec<Lane>, f64) {
    let since = |time: u64| time.saturating_sub(history.began) as f64;
    let end = since(history.written);
    let mut open: Vec<(Lane, Option<f64>)> = vec![(Lane::new("ps0"), None)];
    let mut last = 0.0;
    for event in &history.events {
        let now = since(event.time).clamp(last, end.max(last));
        match event.kind {
            EventKind::Started => {
                // Who died could not say so: it was there until the last that is known of it.
                open.iter_mut().for_each(|(lane, since)| close(lane, since, last));
                open[0].1 = Some(now);
            }
            EventKind::Finished | EventKind::Stopped => {
                open[0].0.marks.push((now, event.kind));
                open.iter_mut().for_each(|(lane, since)| close(lane, since, now));
            }
            EventKind::Checkpoint => open[0].0.marks.push((now, event.kind)),
            EventKind::Joined | EventKind::Returned => {
                if let Some(lane) = lane_of(&mut open, event) {
                    lane.1.get_or_insert(now);
                }
            }
            EventKind::Left => {
                if let Some(lane) = lane_of(&mut open, event) {
                    close(&mut lane.0, &mut lane.1, now);
                    lane.0.marks.push((now, event.kind));
                }
            }
            EventKind::Reattested => {
                if let Some(lane) = lane_of(&mut open, event) {
                    lane.0.marks.push((now, event.kind));
                }
            }
        }
        last = now;
    }
    open.iter_mut().for_each(|(lane, since)| close(lane, since, end));
    open[1..].sort_by(|a, b| (a.0.name.len(), &a.0.name).cmp(&(b.0.name.len(), &b.0.name)));
    (open.into_iter().map(|(lane, _)| lane).collect(), end)
}

impl Lane {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), spans: Vec::new(), marks: Vec::new() }
    }
}

fn close(lane: &mut Lane, since: &mut Option<f64>, at: f64) {
    if let Some(since) = since.take() {
        lane.spans.push((since, at));
    }
}

/// The lane of the worker that an event is about, which its detail begins with.
fn lane_of<'a>(
    lanes: &'a mut Vec<(Lane, Option<f64>)>,
    event: &Event,
) -> Option<&'a mut (Lane, Option<f64>)> {
    let role = event.detail.split([',', ':']).next().filter(|role| role.starts_with("worker"))?;
    if let Some(at) = lanes.iter().position(|(lane, _)| lane.name == role) {
        return lanes.get_mut(at);
    }
    (lanes.len() < LANES_MAX).then(|| lanes.push((Lane::new(role), None)))?;
    lanes.last_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(events: &[(u64, EventKind, &str)], written: u64) -> History {
        let mut history = History::new("00".into(), Vec::new(), 1000);
        for (time, kind, detail) in events {
            let (time, detail) = (1000 + time, (*detail).to_owned());
            history.note(Event { time, step: 0, kind: *kind, detail });
        }
        history.written = 1000 + written;
        history
    }

    #[test]
    fn a_worker_that_was_away_has_a_gap() {
        let events = [
            (0, EventKind::Started, ""),
            (2, EventKind::Joined, "worker10, 8 samples"),
            (3, EventKind::Joined, "worker2, 8 samples"),
            (5, EventKind::Checkpoint, ""),
            (6, EventKind::Left, "worker2: the connection broke"),
            (9, EventKind::Returned, "worker2, 8 samples"),
            (12, EventKind::Finished, ""),
        ];
        let (lanes, end) = lanes(&history(&events, 13));
        assert_eq!(end, 13.0);
        let named: Vec<_> = lanes.iter().map(|lane| (&*lane.name, lane.spans.clone())).collect();
        let expected = [
            ("ps0", vec![(0.0, 12.0)]),
            ("worker2", vec![(3.0, 6.0), (9.0, 12.0)]),
            ("worker10", vec![(2.0, 12.0)]),
        ];
        assert_eq!(named, expected);
        assert_eq!(lanes[0].marks, [(5.0, EventKind::Checkpoint), (12.0, EventKind::Finished)]);
        assert_eq!(lanes[1].marks, [(6.0, EventKind::Left)]);
    }

    #[test]
    fn a_server_that_died_was_there_until_it_was_last_heard_of() {
        let events = [
            (0, EventKind::Started, ""),
            (1, EventKind::Joined, "worker0, 8 samples"),
            (4, EventKind::Checkpoint, ""),
            (20, EventKind::Started, ""),
            (21, EventKind::Returned, "worker0, 8 samples"),
        ];
        let (lanes, _) = lanes(&history(&events, 30));
        assert_eq!(lanes[0].spans, [(0.0, 4.0), (20.0, 30.0)]);
        assert_eq!(lanes[1].spans, [(1.0, 4.0), (21.0, 30.0)]);
    }

    #[test]
    fn a_clock_that_went_back_and_strange_names_harm_nothing() {
        let events = [
            (9, EventKind::Started, ""),
            (5, EventKind::Joined, "worker0, 8 samples"),
            (3, EventKind::Left, "secret: odd"),
        ];
        let (lanes, end) = lanes(&history(&events, 0));
        assert_eq!((lanes.len(), end), (2, 0.0));
        assert!(lanes.iter().flat_map(|lane| &lane.spans).all(|(from, to)| from <= to));
    }
}
