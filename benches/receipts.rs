//! What receipts cost: hashing a contribution and the parameters of ResNet-50, a receipt, a ledger of 1,000 rounds.

use std::hint::black_box;
use std::time::Instant;

use hfl::job::receipt::{Receipt, Share};
use hfl::training::cell_hashes::CellHashes;
use hfl::training::cells::CELL;
use hfl::training::ledger::Ledger;

/// Values of ResNet-50 for ten classes, with running statistics.
const VALUES: usize = 23_581_642;

fn main() {
    let values = vec![1.5_f32; VALUES];
    let mut hashes = CellHashes::new(VALUES.div_ceil(CELL));
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            for (index, cell) in values.chunks(CELL).enumerate() {
                hashes.put(index, bytemuck::cast_slice(cell));
            }
            black_box(hashes.root());
            1e3 * start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("hash of {} MB: {:.1} ms (median of 9, one thread)", VALUES * 4 / 1_000_000, times[4]);
    let share = |worker: u8| Share { samples: 128, fresh: false, hash: [worker; 32] };
    let (mut ledgers, mut last) = ([Ledger::default(), Ledger::of_worker(1)], None::<Receipt>);
    let start = Instant::now();
    for _ in 0..1000 {
        let step = last.as_ref().map_or(1, |last| last.step + 1);
        let shares = vec![Some(share(0)), Some(share(1))];
        let next = Receipt::next(last.as_ref(), [1; 32], step, 1, [2; 32], shares);
        ledgers.iter_mut().for_each(|ledger| ledger.push(&next));
        last = Some(next);
    }
    println!("a receipt and two ledgers: {:.1} us", 1e3 * start.elapsed().as_secs_f64());
    let [of_server, of_worker] = ledgers.map(|ledger| ledger.encode().len());
    println!("1,000 rounds: ps0 keeps {of_server} bytes, a worker {of_worker}");
}
