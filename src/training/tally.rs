//! `Tally`: what the workers found on their test images at one step, added up.

use crate::history::Evaluation;

/// Tables of one step, one a worker.
pub struct Tally {
    classes: usize,
    tables: Vec<Table>,
}

/// What is known of a worker's test images.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Table {
    /// It did not say yet.
    Unsaid,
    /// It has none.
    Blind,
    /// Images by `class * classes + found`.
    Counts(Vec<u32>),
}

impl Tally {
    /// An empty one.
    pub fn new(classes: usize, workers: u16) -> Self {
        Self { classes, tables: vec![Table::Unsaid; usize::from(workers)] }
    }

    /// Takes a worker's table, which is empty where it has no test images; whether it has the right size.
    pub fn take(&mut self, worker: u16, confusion: &[u32]) -> bool {
        let table = match confusion.len() {
            0 => Table::Blind,
            len if len == self.classes * self.classes => Table::Counts(confusion.into()),
            _ => return false,
        };
        self.tables[usize::from(worker)] = table;
        true
    }

    /// A process that takes a worker's place may have test images where the one before had none.
    pub fn forget(&mut self, worker: u16) {
        let table = &mut self.tables[usize::from(worker)];
        if *table == Table::Blind {
            *table = Table::Unsaid;
        }
    }

    /// Whether a worker is still to be asked.
    pub fn lacks(&self, worker: u16) -> bool {
        self.tables[usize::from(worker)] == Table::Unsaid
    }

    /// Whether all have said what they found.
    pub fn is_complete(&self) -> bool {
        !self.tables.contains(&Table::Unsaid)
    }

    /// The sum of all tables, which are unsaid after that.
    pub fn settle(&mut self, step: u64, names: &[String]) -> Evaluation {
        let classes = self.classes;
        let mut confusion = vec![0_u64; classes * classes];
        let mut by_worker = Vec::with_capacity(self.tables.len());
        for table in &mut self.tables {
            let Table::Counts(counts) = table else {
                by_worker.push([0; 2]);
                continue;
            };
            let right = (0..classes).map(|class| u64::from(counts[class * (classes + 1)])).sum();
            by_worker.push([right, counts.iter().map(|&count| u64::from(count)).sum()]);
            confusion.iter_mut().zip(&*counts).for_each(|(sum, &count)| *sum += u64::from(count));
            *table = Table::Unsaid;
        }
        Evaluation { step, by_worker, classes: names.into(), confusion }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_added_up_overall_by_class_and_by_worker() {
        let names = ["a", "b"].map(str::to_owned);
        let mut tally = Tally::new(2, 3);
        assert!(tally.take(0, &[3, 1, 0, 2]) && tally.take(2, &[1, 0, 5, 4]));
        assert!(!tally.take(1, &[1, 2, 3]), "neither empty nor whole");
        assert!(tally.lacks(1) && !tally.is_complete());
        assert!(tally.take(1, &[]) && tally.is_complete());
        let found = tally.settle(8, &names);
        assert_eq!(found.by_worker, [[5, 6], [0, 0], [5, 10]]);
        assert_eq!((found.total(), found.confusion), ([10, 16], vec![4, 1, 5, 6]));
        // Who has no test images is not asked again, but by another process of that worker perhaps.
        assert!(tally.lacks(0) && !tally.lacks(1) && !tally.is_complete());
        tally.forget(1);
        assert!(tally.lacks(1));
    }
}
