//! Evidence while a job runs: open connections are attested anew, and who then runs something else leaves.

use hfl::events::Event;

use crate::processes::{Cast, Dir, Process};

/// The events of a role until one of this kind.
fn events(process: &Process, is_last: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut found = Vec::new();
    while let Some(line) = process.next_line() {
        let (_, event) = Event::parse(&line).expect(&line);
        let ends = is_last(&event);
        found.push(event);
        if ends {
            return found;
        }
    }
    panic!("ended before: {found:?}");
}

#[test]
fn open_connections_are_attested_anew_and_who_runs_something_else_leaves_the_job() {
    let dir = Dir::new("reattest");
    let cast = Cast::new(&dir, "model");
    let often = ("--reattest", "1");
    let slow = ("--pause-ms", "250");
    let ps0 = cast.start("ps0", &[often, ("--json", ""), ("--steps", "40")]);
    let honest = cast.start("worker0", &[often, slow, ("--json", "")]);
    // Two quotes are for the certificate and for the session, those after them are fresh ones.
    let turning = cast.start("worker1", &[slow, ("--sim-image", "hfl+4+evil")]);
    let said = events(&ps0, |event| matches!(event, Event::Left { .. }));
    let anew = |said: &[Event], role: &str| {
        let of = |event: &&Event| matches!(event, Event::Reattested { peer, .. } if peer == role);
        said.iter().filter(of).count()
    };
    assert_eq!(anew(&said, "worker1"), 2, "{said:?}");
    assert!(anew(&said, "worker0") >= 1, "{said:?}");
    let Some(Event::Left { worker, why, rounds, samples }) = said.last() else {
        panic!("{said:?}")
    };
    let closed = said.iter().filter(|event| matches!(event, Event::Round { .. })).count() as u64;
    assert_eq!((worker.as_str(), *rounds, *samples), ("worker1", closed, 4 * closed), "{why}");
    assert!(why.contains("[measurement]") && why.contains(&format!("{closed} rounds")), "{why}");
    let (code, stderr) = turning.end();
    assert!(code == 1 && stderr.contains("our evidence was not accepted"), "{stderr}");

    // The job goes on with one whose image is the accepted one, to its end.
    let again = cast.start("worker1", &[]);
    let said = events(&honest, |event| matches!(event, Event::Finished {}));
    assert!(anew(&said, "ps0") >= 1, "ps0 shows fresh evidence too: {said:?}");
    events(&ps0, |event| matches!(event, Event::Parameters { .. }));
    for process in [honest, again, ps0] {
        let (code, stderr) = process.end();
        assert_eq!(code, 0, "{stderr}");
    }
    let page = std::fs::read_to_string(dir.path("model/report.html")).expect("a page");
    assert!(page.contains("attested anew"), "{page}");
}
