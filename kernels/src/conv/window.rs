//! Which taps of a filter hit which pixels: the tables that a convolution walks.

/// Largest side of a filter.
pub(crate) const KERNEL_MAX: usize = 7;

/// A tap and the pixel on its other side.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) pixel: u32,
    pub(crate) tap: u32,
}

/// For each pixel of one side, its entries.
pub(crate) struct Table {
    starts: Vec<usize>,
    pub(crate) entries: Vec<Entry>,
}

impl Table {
    pub(crate) fn new(pixels: usize, hits: impl Iterator<Item = (u32, u32, u32)>) -> Self {
        let mut hits: Vec<_> = hits.collect();
        hits.sort_unstable();
        let starts = (0..=pixels)
            .map(|pixel| hits.partition_point(|&(at, _, _)| (at as usize) < pixel))
            .collect();
        let entries = hits.iter().map(|&(_, tap, pixel)| Entry { pixel, tap }).collect();
        Self { starts, entries }
    }

    pub(crate) fn of(&self, pixel: usize) -> &[Entry] {
        &self.entries[self.starts[pixel]..self.starts[pixel + 1]]
    }
}

/// Input pixel `from` reaches output pixel `to` through `tap`.
pub(crate) struct Hit {
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) tap: u32,
}

pub(crate) fn hits(
    input: [usize; 2],
    output: [usize; 2],
    kernel: usize,
    stride: usize,
    pad: usize,
) -> Vec<Hit> {
    let along = |axis: usize, q: usize, s: usize| {
        (q * stride + s).checked_sub(pad).filter(|&at| at < input[axis])
    };
    let mut hits = Vec::new();
    for p in 0..output[0] {
        for q in 0..output[1] {
            for r in 0..kernel {
                for s in 0..kernel {
                    let (Some(h), Some(w)) = (along(0, p, r), along(1, q, s)) else { continue };
                    let index = |at: usize| u32::try_from(at).expect("images are small");
                    hits.push(Hit {
                        from: index(h * input[1] + w),
                        to: index(p * output[1] + q),
                        tap: index(r * kernel + s),
                    });
                }
            }
        }
    }
    hits
}
