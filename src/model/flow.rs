//! What flows through a pass beside its activations: parameters that are still coming in on the way forward, and
//! parameters with gradients that are done with on the way back.

use std::ops::Range;

use kernels::Retiring;

use crate::model::gradients::Bucket;

/// The parameters of a forward pass, which need not all be there when it begins.
pub(crate) struct Arriving<'a> {
    pub(crate) params: &'a mut [f32],
    /// See [`ResNet::forward`](crate::model::resnet::ResNet::forward).
    pub(crate) await_end: &'a mut dyn FnMut(&mut [f32], usize) -> bool,
    /// Images of the batch.
    pub(crate) n: usize,
}

impl Arriving<'_> {
    /// The parameters, once the first `end` of them and the running statistics are there; `None` to give up.
    pub(crate) fn until(&mut self, end: usize) -> Option<&[f32]> {
        (self.await_end)(self.params, end).then_some(&*self.params)
    }
}

/// The batch of a step, its parameters and where its gradients go: both but for what is done.
pub(crate) struct Flow<'a> {
    pub(crate) images: &'a [f32],
    pub(crate) params: &'a mut [f32],
    pub(crate) gradients: Retiring<'a, f32>,
    pub(crate) n: usize,
}

impl<'a> Flow<'a> {
    /// The last of what is left, which is done.
    pub(crate) fn retire(&mut self, range: Range<usize>, loss: f32) -> Bucket<'a> {
        let (params, part) = std::mem::take(&mut self.params).split_at_mut(range.start);
        assert_eq!(part.len(), range.len(), "parts are done from the end on");
        self.params = params;
        Bucket { loss, params: part, gradients: self.gradients.retire(range.start), range }
    }
}
