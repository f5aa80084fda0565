//! What it costs that people can see a job: the books of a step, its line of `--json`, and the page of a long job.
//!
//! `cargo bench --bench report`. A step of ResNet-50 takes tens of milliseconds and more; a page is written at each
//! checkpoint, which are 400 steps or ten minutes apart.

use std::hint::black_box;
use std::time::{Duration, Instant};

use hfl::events;
use hfl::history::curve::Point;
use hfl::history::page::page;
use hfl::history::{Evaluation, Event, EventKind, History, Shares};

const STEPS: u64 = 100_000;
const PAGES: usize = 31;
/// The shortest step that `BENCHMARKS.md` has, and steps between two pages.
const STEP: Duration = Duration::from_millis(30);
const BETWEEN: u32 = 400;

fn main() {
    let mut history = History::new("ab".repeat(32), Vec::new(), 1_700_000_000);
    let start = Instant::now();
    for step in 0..STEPS {
        book(&mut history, step);
        let said =
            events::Event::Step { step, steps: STEPS, loss: Some(1.5), seconds: 0.1, images: 256 };
        black_box(said.line());
    }
    let books = start.elapsed() / STEPS as u32;
    fill(&mut history);
    let mut pages: Vec<Duration> = (0..PAGES)
        .map(|_| {
            let start = Instant::now();
            black_box((page(&history), history.encode()));
            start.elapsed()
        })
        .collect();
    pages.sort_unstable();
    let written = pages[PAGES / 2];
    let step = books + written / BETWEEN;
    println!("books and line of a step  {books:>10.1?}");
    println!("page and history          {written:>10.1?}  every {BETWEEN} steps");
    println!(
        "together, of a step       {step:>10.1?}  {:.4} % of {STEP:?}",
        100.0 * step.as_secs_f64() / STEP.as_secs_f64()
    );
}

/// What ps0 notes of a step of eight workers.
fn book(history: &mut History, step: u64) {
    history.curve.push(Point::step(step, 1.5, 0.03, 0.5, 256));
    let spent = Shares { steps: 1, images: 32, forward: 0.1, backward: 0.2, ..Shares::default() };
    (0..8).for_each(|worker| history.spend(worker, spent));
    history.updates += 0.01;
}

/// Everything else of a long job, as much as is ever kept.
fn fill(history: &mut History) {
    for at in 0..512 {
        let kind = if at % 3 == 0 { EventKind::Left } else { EventKind::Returned };
        let detail = format!("worker{}, 25000 samples", at % 8);
        history.note(Event { time: 1_700_000_000 + at, step: at, kind, detail });
    }
    let classes: Vec<String> = (0..10).map(|class| format!("class {class}")).collect();
    for epoch in 0..100 {
        history.evaluated(Evaluation {
            step: epoch,
            by_worker: vec![[epoch, 100]; 8],
            classes: classes.clone(),
            confusion: vec![epoch; 100],
        });
    }
}
