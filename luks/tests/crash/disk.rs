//! Disks for crashes: one that remembers every write, and one that holds what a crash left.
//!
//! A sector of 512 bytes is written whole or not at all. Between two barriers a disk may have kept any of the
//! sectors that were written, whatever their order, and of a sector any version.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use luks::Error;
use luks::disk::Disk;

pub(crate) const SECTOR: u64 = 512;

/// The sectors that a write touched, with all their bytes.
pub(crate) type Write = Vec<(u64, [u8; SECTOR as usize])>;

/// What happened to a disk.
pub(crate) enum Event {
    Write(Write),
    /// Everything before is on the medium.
    Barrier,
    /// The job was told that this step is saved.
    Saved(u64),
}

/// Sectors by their number.
type Sectors = BTreeMap<u64, [u8; SECTOR as usize]>;

/// An image with two layers of sectors over it: one that many states share, and what is new. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct Layered {
    base: Rc<Vec<u8>>,
    shared: Rc<Sectors>,
    new: Rc<RefCell<Sectors>>,
    /// What was new when a recording began.
    start: Rc<Sectors>,
    events: Option<Rc<RefCell<Vec<Event>>>>,
}

impl Layered {
    /// This image, unchanged.
    pub(crate) fn new(base: Rc<Vec<u8>>) -> Self {
        let (shared, start) = (Rc::default(), Rc::default());
        Self { base, shared, new: Rc::default(), start, events: None }
    }

    /// A disk of its own with the same bytes, for some more of them.
    pub(crate) fn copy(&self) -> Self {
        let new = Rc::new(RefCell::new(self.new.borrow().clone()));
        Self { new, events: None, ..self.clone() }
    }

    /// A disk of its own with the same bytes, from which many copies are made.
    pub(crate) fn settled(&self) -> Self {
        let mut shared = (*self.shared).clone();
        shared.extend(self.new.borrow().iter());
        Self { shared: Rc::new(shared), ..Self::new(self.base.clone()) }
    }

    /// A copy that remembers what happens to it.
    pub(crate) fn recording(&self) -> Self {
        let start = Rc::new(self.new.borrow().clone());
        Self { start, events: Some(Rc::default()), ..self.copy() }
    }

    /// The disk when a recording began.
    pub(crate) fn at_start(&self) -> Self {
        let new = Rc::new(RefCell::new((*self.start).clone()));
        Self { new, events: None, ..self.clone() }
    }

    /// The same bytes as an image of their own.
    pub(crate) fn flattened(&self) -> Self {
        let mut bytes = vec![0; self.base.len()];
        self.read_at(&mut bytes, 0).expect("the whole");
        Self::new(Rc::new(bytes))
    }

    /// What happened.
    pub(crate) fn events(&self) -> Ref<'_, Vec<Event>> {
        self.events.as_ref().expect("a recording").borrow()
    }

    pub(crate) fn saved(&self, step: u64) {
        self.events.as_ref().expect("a recording").borrow_mut().push(Event::Saved(step));
    }

    pub(crate) fn put(&self, sector: u64, bytes: [u8; SECTOR as usize]) {
        self.new.borrow_mut().insert(sector, bytes);
    }

    /// A digest of what differs from the image, from a sector on.
    pub(crate) fn digest_from(&self, first: u64) -> [u8; 32] {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        for (sector, bytes) in self.settled().shared.range(first..) {
            if self.base[(sector * SECTOR) as usize..][..bytes.len()] != *bytes {
                context.update(&sector.to_le_bytes());
                context.update(bytes);
            }
        }
        context.finish().as_ref().try_into().expect("32 bytes")
    }

    fn sector(&self, sector: u64) -> [u8; SECTOR as usize] {
        let below = || self.base[(sector * SECTOR) as usize..][..SECTOR as usize].try_into();
        let changed = self.new.borrow().get(&sector).or(self.shared.get(&sector)).copied();
        changed.unwrap_or_else(|| below().expect("a sector"))
    }
}

/// The sectors of a range: each with the part of it that is meant, and where that is in the range.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
    let end = offset + len as u64;
    (offset / SECTOR..end.div_ceil(SECTOR)).map(move |sector| {
        let start = (sector * SECTOR).max(offset);
        let stop = ((sector + 1) * SECTOR).min(end);
        let inside = (start - sector * SECTOR) as usize..(stop - sector * SECTOR) as usize;
        (sector, inside, (start - offset) as usize)
    })
}

impl Disk for Layered {
    fn len(&self) -> u64 {
        self.base.len() as u64
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        assert!(offset + target.len() as u64 <= self.len(), "checked above");
        target.copy_from_slice(&self.base[offset as usize..][..target.len()]);
        let end = (offset + target.len() as u64).div_ceil(SECTOR);
        let new = self.new.borrow();
        for layer in [&*self.shared, &*new] {
            for (sector, bytes) in layer.range(offset / SECTOR..end) {
                let start = (sector * SECTOR).max(offset);
                let stop = ((sector + 1) * SECTOR).min(offset + target.len() as u64);
                let inside = (start - sector * SECTOR) as usize..(stop - sector * SECTOR) as usize;
                let target = &mut target[(start - offset) as usize..(stop - offset) as usize];
                target.copy_from_slice(&bytes[inside]);
            }
        }
        Ok(())
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        let mut written = Vec::new();
        for (sector, inside, at) in parts(offset, source.len()) {
            let mut bytes = self.sector(sector);
            let len = inside.len();
            bytes[inside].copy_from_slice(&source[at..at + len]);
            self.put(sector, bytes);
            written.push((sector, bytes));
        }
        if let Some(events) = &self.events {
            events.borrow_mut().push(Event::Write(written));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        if let Some(events) = &self.events {
            events.borrow_mut().push(Event::Barrier);
        }
        Ok(())
    }
}
