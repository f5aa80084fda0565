//! `Cells`: how values of the flat buffer travel: in cells, one a chunk, in the number format of the job.
//!
//! The number of values decides how many bytes a cell has, so that nobody takes a length from a peer. Running
//! statistics are always in single precision: they are few, of all magnitudes, and replaced rather than added to.

use std::ops::Range;

use kernels::Isa;
use kernels::narrow::{
    bf16_len, decode_bf16, decode_int8, encode_bf16, encode_int8, int8_len, subtract_int8,
};
use protocol::CHUNK_LEN_MAX;

use crate::job::{Job, Wire};
use crate::model::params::Layout;

/// Values that travel in one chunk.
pub const CELL: usize = CHUNK_LEN_MAX / size_of::<f32>();

/// The cells of a flat buffer.
#[derive(Clone, Copy, Debug)]
pub struct Cells {
    /// Values of the buffer, and how many of them are trained: those in front.
    len: usize,
    trained: usize,
    /// Values of a cell.
    cell: usize,
    format: Wire,
    isa: Isa,
}

impl Cells {
    /// Cells of `cell` values as a job's parameters travel.
    pub fn of_parameters(job: &Job, layout: &Layout, cell: usize, isa: Isa) -> Self {
        // 8 bits of a weight are too few to compute with. The server keeps what was rounded off, so nothing of it
        // adds up: no feedback is needed.
        let format = if job.wire == Wire::Fp32 { Wire::Fp32 } else { Wire::Bf16 };
        Self { format, ..Self::of_gradients(job, layout, cell, isa) }
    }

    /// Cells of `cell` values as a job's gradients, or differences, travel.
    pub fn of_gradients(job: &Job, layout: &Layout, cell: usize, isa: Isa) -> Self {
        assert!(layout.len > 0 && cell > 0);
        Self { len: layout.len, trained: layout.trained, cell, format: job.wire, isa }
    }

    /// Values of the buffer.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.len.div_ceil(self.cell)
    }

    /// The values of a cell.
    pub fn range(&self, index: usize) -> Option<Range<usize>> {
        let start = index.checked_mul(self.cell)?;
        (start < self.len).then(|| start..self.len.min(start + self.cell))
    }

    /// The cells in the order in which a forward pass needs them: running statistics are read with the first layer.
    pub fn forward_order(&self) -> impl Iterator<Item = usize> + use<> {
        let statistics = self.statistics();
        statistics.clone().chain(0..statistics.start)
    }

    /// The cells that have the first `end` values, and those of running statistics.
    pub fn needed(&self, end: usize) -> impl Iterator<Item = usize> + use<> {
        let first = end.min(self.len).div_ceil(self.cell);
        (0..first).chain(self.statistics())
    }

    /// Cells that have running statistics.
    fn statistics(&self) -> Range<usize> {
        let first = if self.trained < self.len { self.trained / self.cell } else { self.count() };
        first..self.count()
    }

    /// The cell that begins at `offset` bytes of the flat buffer and has so many bytes on its way.
    pub fn find(&self, offset: u64, bytes: usize) -> Option<(usize, Range<usize>)> {
        let width = size_of::<f32>();
        let start = usize::try_from(offset).ok().filter(|at| at.is_multiple_of(width))? / width;
        let index = start / self.cell;
        let range = self.range(index)?;
        (range.start == start && self.byte_len(&range) == bytes).then_some((index, range))
    }

    /// Where a cell begins, in bytes of the flat buffer.
    pub fn offset(range: &Range<usize>) -> u64 {
        (range.start * size_of::<f32>()) as u64
    }

    /// Whether values travel as the bytes that they are in memory.
    pub fn are_plain(&self) -> bool {
        self.format == Wire::Fp32
    }

    /// Whether so much is rounded off that it has to be added to the next ones.
    pub fn need_feedback(&self) -> bool {
        self.format == Wire::Int8
    }

    /// Bytes of a cell on its way.
    fn byte_len(&self, range: &Range<usize>) -> usize {
        let trained = self.trained_in(range);
        let narrow = match self.format {
            Wire::Fp32 => trained * size_of::<f32>(),
            Wire::Bf16 => bf16_len(trained),
            Wire::Int8 => int8_len(trained),
        };
        narrow + (range.len() - trained) * size_of::<f32>()
    }

    /// The bytes of a cell's values; in `scratch` where they are not those in memory.
    pub fn encode<'a>(
        &self,
        range: &Range<usize>,
        values: &'a [f32],
        scratch: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        match self.are_plain() {
            true => bytemuck::cast_slice(values),
            false => self.encode_narrow(range, values, scratch),
        }
    }

    /// The bytes of a cell's values, in `scratch`.
    pub fn encode_narrow<'a>(
        &self,
        range: &Range<usize>,
        values: &[f32],
        scratch: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        assert_eq!(values.len(), range.len());
        let (trained, statistics) = values.split_at(self.trained_in(range));
        scratch.resize(self.byte_len(range), 0);
        let (narrow, wide) = scratch.split_at_mut(self.byte_len(range) - size_of_val(statistics));
        match self.format {
            Wire::Fp32 => narrow.copy_from_slice(bytemuck::cast_slice(trained)),
            Wire::Bf16 => encode_bf16(self.isa, trained, narrow),
            Wire::Int8 => encode_int8(self.isa, trained, narrow),
        }
        wide.copy_from_slice(bytemuck::cast_slice(statistics));
        scratch
    }

    /// The values of a cell's bytes.
    pub fn decode(&self, range: &Range<usize>, bytes: &[u8], values: &mut [f32]) {
        assert_eq!((bytes.len(), values.len()), (self.byte_len(range), range.len()));
        let (trained, statistics) = values.split_at_mut(self.trained_in(range));
        let (narrow, wide) = bytes.split_at(bytes.len() - size_of_val(statistics));
        match self.format {
            Wire::Fp32 => copy(narrow, trained),
            Wire::Bf16 => decode_bf16(self.isa, narrow, trained),
            Wire::Int8 => decode_int8(self.isa, narrow, trained),
        }
        copy(wide, statistics);
    }

    /// Leaves of the trained values what their bytes do not say.
    pub fn subtract_sent(&self, trained: &mut [f32]) {
        assert_eq!(trained.len(), self.trained);
        if self.need_feedback() {
            // A cell at a time: blocks begin anew with each.
            trained.chunks_mut(self.cell).for_each(|values| subtract_int8(self.isa, values));
        }
    }

    fn trained_in(&self, range: &Range<usize>) -> usize {
        self.trained.clamp(range.start, range.end) - range.start
    }
}

fn copy(bytes: &[u8], values: &mut [f32]) {
    let (bytes, _) = bytes.as_chunks::<4>();
    for (value, &bytes) in values.iter_mut().zip(bytes) {
        *value = f32::from_le_bytes(bytes);
    }
}

#[cfg(test)]
impl Cells {
    /// Cells of a buffer without statistics.
    pub(crate) fn plain(len: usize, cell: usize) -> Self {
        Self { len, trained: len, cell, format: Wire::Fp32, isa: Isa::detect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_pass_needs_statistics_first_then_layer_after_layer() {
        let cells = Cells { trained: 850, ..Cells::plain(1000, 100) };
        let order: Vec<usize> = cells.forward_order().collect();
        assert_eq!(order, [8, 9, 0, 1, 2, 3, 4, 5, 6, 7]);
        let needed: Vec<usize> = cells.needed(201).collect();
        assert_eq!(needed, [0, 1, 2, 8, 9]);
        // Every end needs no more than what comes first by the order.
        for end in 1..=1000 {
            let mut needed: Vec<usize> = cells.needed(end).collect();
            needed.sort_unstable();
            needed.dedup();
            assert!(order[..needed.len()].iter().all(|index| needed.contains(index)), "{end}");
        }
        let plain = Cells::plain(1000, 300);
        assert!(plain.forward_order().eq(0..4) && plain.needed(300).eq(0..1));
    }

    #[test]
    fn each_format_has_its_size_and_statistics_travel_as_they_are() {
        let values: Vec<f32> = (0..1000).map(|index| (index as f32 - 500.0) / 7.0).collect();
        for (format, sizes) in [
            (Wire::Fp32, [1600, 1600, 800]),
            (Wire::Bf16, [800, 600 + 400, 800]),
            (Wire::Int8, [400 + 8, 300 + 8 + 400, 800]),
        ] {
            let cells = Cells { trained: 700, format, ..Cells::plain(1000, 400) };
            let mut scratch = Vec::new();
            for (index, size) in sizes.into_iter().enumerate() {
                let range = cells.range(index).expect("three cells");
                let offset = Cells::offset(&range);
                let bytes = cells.encode(&range, &values[range.clone()], &mut scratch);
                assert_eq!(bytes.len(), size, "{format} {index}");
                assert_eq!(cells.find(offset, size), Some((index, range.clone())));
                assert_eq!(cells.find(offset, size + 1), None);
                assert_eq!(cells.find(offset + 4, size), None);
                let mut back = vec![0.0; range.len()];
                cells.decode(&range, bytes, &mut back);
                for (at, (value, back)) in values[range.clone()].iter().zip(&back).enumerate() {
                    let off = (value - back).abs();
                    let most = if range.start + at < 700 { 0.5 } else { 0.0 };
                    assert!(off <= most, "{format}: {value} came as {back}");
                }
            }
            assert_eq!(cells.find(u64::MAX - 3, sizes[0]), None);
        }
    }
}
