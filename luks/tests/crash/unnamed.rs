//! Crashes between sectors that go through the journal of dm-integrity and sectors that go past it: the same sector
//! now one, now the other, as blocks of a file system are freed and taken again.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use luks::disk::Disk;
use luks::integrity::Authenticated;

use crate::cuts::{kills, random_losses};
use crate::disk::Layered;
use crate::{MIB, Random};

/// With a disk of this length the journal has five sections.
const SECTOR: usize = 512;
const DISK_LEN: usize = 8 * MIB;
const SECTORS: usize = 40;
/// Flushes of a run, and writes between two of them.
const FLUSHES: u64 = 60;
const WRITES: usize = 6;

/// What the sectors may hold.
#[derive(Clone, Debug, Default)]
struct Model {
    /// What each held at the last flush.
    flushed: BTreeMap<usize, u8>,
    /// What was written since, and by which way.
    newer: BTreeMap<usize, BTreeSet<u8>>,
    unnamed: BTreeSet<usize>,
}

fn open(disk: Layered, writable: bool) -> Authenticated<Layered> {
    let key: Vec<u8> = (0..96).collect();
    Authenticated::open(disk, &key, SECTOR as u32, writable).expect("opens")
}

/// A run of writes, and at each flush what the sectors held.
fn run(random: &mut Random) -> (Layered, Vec<Model>) {
    let disk = Layered::new(Rc::new(vec![0; DISK_LEN]));
    let key: Vec<u8> = (0..96).collect();
    Authenticated::format(disk.clone(), &key, SECTOR as u32).expect("format");
    let disk = disk.flattened().recording();
    let mut volume = open(disk.clone(), true);
    let (mut flushed, mut models) = (BTreeMap::new(), Vec::new());
    for step in 1..=FLUSHES {
        let mut model = Model { flushed: flushed.clone(), ..Model::default() };
        let mut last = flushed.clone();
        for write in 0..WRITES {
            let sector = random.below(SECTORS);
            let value = step as u8 * 4 + write as u8 % 4;
            let at = (sector * SECTOR) as u64;
            // Named again within the same span, a sector would have to be readable whatever of it was lost.
            match model.unnamed.contains(&sector) || random.below(2) == 0 {
                true => {
                    volume.write_unnamed_at(&[value; SECTOR], at).expect("writes");
                    model.unnamed.insert(sector);
                }
                false => volume.write_at(&[value; SECTOR], at).expect("writes"),
            }
            model.newer.entry(sector).or_default().insert(value);
            last.insert(sector, value);
        }
        volume.flush().expect("flushes");
        disk.saved(step);
        flushed = last;
        models.push(model);
    }
    models.push(Model { flushed, ..Model::default() });
    (disk, models)
}

impl Model {
    fn check(&self, volume: &Authenticated<Layered>, at: u64) {
        for sector in 0..SECTORS {
            let mut bytes = [0; SECTOR];
            if let Err(error) = volume.read_at(&mut bytes, (sector * SECTOR) as u64) {
                assert!(self.unnamed.contains(&sector), "flush {at}, sector {sector}: {error}");
                continue;
            }
            let old = self.flushed.get(&sector).copied().unwrap_or(0);
            let new = self.newer.get(&sector);
            let is_known = bytes[0] == old || new.is_some_and(|new| new.contains(&bytes[0]));
            assert!(is_known && bytes == [bytes[0]; SECTOR], "flush {at}, sector {sector}");
        }
    }
}

#[test]
fn a_sector_that_is_now_journaled_and_now_not_is_never_set_back() {
    let mut random = Random(23);
    let (disk, models) = run(&mut random);
    let mut states = 0;
    let mut look = |state: &Layered, saved: u64| {
        states += 1;
        // What is flushed here may be the next flush's, and is one of its values then.
        let model = &models[saved as usize];
        model.check(&open(state.copy(), false), saved);
        let recovered = state.copy();
        drop(open(recovered.clone(), true));
        model.check(&open(recovered, true), saved);
    };
    let mut count = 0;
    kills(&disk, |state, saved| {
        count += 1;
        if count % 7 == 0 {
            look(state, saved);
        }
    });
    random_losses(&disk, 1000, &mut random, |state, saved, _| look(state, saved));
    println!("{states} states of {FLUSHES} flushes");
}
