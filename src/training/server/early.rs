//! What of the next parameters is final while their round still runs.

use std::ops::Range;

use kernels::{Isa, Sgd};

use crate::job::state::State;
use crate::model::params::Layout;
use crate::training::update::{Trained, trained};

/// The cells whose update is made, though nothing of it is in the state yet: the sum has the velocity after the update,
/// from which the parameters follow.
pub(super) struct Early {
    /// The trained tensors.
    trained: Vec<Trained>,
    /// Which cells these are.
    is_final: Vec<bool>,
    /// Parameters of one cell.
    room: Vec<f32>,
}

impl Early {
    /// None yet.
    pub(super) fn new(layout: &Layout, weight_decay: f32, cells: usize) -> Self {
        let trained = trained(layout, weight_decay, 1.0);
        Self { trained, is_final: vec![false; cells], room: Vec::new() }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        !self.is_final.contains(&true)
    }

    /// Whether a cell is one of them.
    pub(super) fn has(&self, index: usize) -> bool {
        self.is_final[index]
    }

    /// A cell is one of them from now on.
    pub(super) fn add(&mut self, index: usize) {
        self.is_final[index] = true;
    }

    /// All of them are in the state.
    pub(super) fn clear(&mut self) {
        self.is_final.fill(false);
    }

    /// The trained tensors.
    pub(super) fn tensors(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.trained.iter().map(|own| own.range.clone())
    }

    /// Turns the sum of a range into the velocity after the update.
    pub(super) fn update(&self, isa: Isa, step: Sgd, state: &State, sum: &mut [f32], start: usize) {
        for (part, decay) in self.parts(start..start + sum.len()) {
            let sum = &mut sum[part.start - start..part.end - start];
            let step = Sgd { decay, ..step };
            let (params, velocity) = (&state.params[part.clone()], &state.velocity[part]);
            step.next_velocity(isa, params, velocity, sum);
        }
    }

    /// The parameters after the update of a range, whose sum was turned into it.
    pub(super) fn parameters(
        &mut self,
        isa: Isa,
        step: Sgd,
        state: &State,
        sum: &[f32],
        start: usize,
    ) -> &[f32] {
        let mut room = std::mem::take(&mut self.room);
        room.clear();
        // Statistics are replaced by their mean; the rest is computed below.
        room.extend(sum.iter().map(|sum| step.scale * sum));
        for (part, _) in self.parts(start..start + sum.len()) {
            let here = part.start - start..part.end - start;
            let (params, velocity) = (&state.params[part], &sum[here.clone()]);
            step.next_weights(isa, params, velocity, &mut room[here]);
        }
        self.room = room;
        &self.room
    }

    /// The trained values within a range, and their decay.
    fn parts(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, f32)> + '_ {
        let first = self.trained.partition_point(|own| own.range.end <= range.start);
        let end = range.end;
        let parts = self.trained[first..].iter().take_while(move |own| own.range.start < end);
        parts.map(move |own| {
            let tensor = &own.range;
            (tensor.start.max(range.start)..tensor.end.min(range.end), own.decay)
        })
    }
}
