//! A network in the number format of its job.

mod flow;
pub mod fused;
pub mod gradients;
pub mod inference;
pub mod init;
pub mod network;
mod operand;
pub mod params;
mod plan;
pub mod resnet;

use kernels::{Bf16, Exec, Isa, Pool};

use crate::data::batch::Batch;
use crate::job::{Algorithm, Precision};
use crate::model::gradients::{Bucket, Pieces};
use crate::model::network::Network;
use crate::model::resnet::ResNet;

/// A network that trains.
pub enum Model {
    /// Activations and operands in `f32`.
    Single(Box<ResNet<f32>>),
    /// Activations and operands in bfloat16.
    Half(Box<ResNet<Bf16>>),
}

impl Model {
    /// Memory for batches of up to `batch_max` images.
    ///
    /// # Errors
    /// When the system has not that much memory, or the CPU not the instructions for `precision`.
    pub fn new(
        network: Network,
        precision: Precision,
        conv: Algorithm,
        batch_max: usize,
        pool: Pool,
        isa: Isa,
    ) -> std::io::Result<Self> {
        if precision == Precision::Bf16 && !isa.has_bf16() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::Unsupported,
                format!(
                    "precision bf16 needs a CPU with AMX or AVX512-BF16, this one runs as {}; \
                     --precision fp32 runs anywhere",
                    isa.name()
                ),
            ));
        }
        let network = network.computed(algorithm(precision, conv, isa));
        Ok(match precision {
            Precision::Fp32 => {
                let isa = isa.of::<f32>();
                Self::Single(Box::new(ResNet::new(network, batch_max, pool, isa)?))
            }
            Precision::Bf16 => Self::Half(Box::new(ResNet::new(network, batch_max, pool, isa)?)),
        })
    }

    /// Computes on these threads from now on: the same bits.
    pub fn compute_on(&mut self, pool: Pool) {
        match self {
            Self::Single(model) => model.compute_on(pool),
            Self::Half(model) => model.compute_on(pool),
        }
    }

    /// See [`ResNet::freeze`].
    pub fn freeze(&mut self, is_frozen: bool) {
        match self {
            Self::Single(model) => model.freeze(is_frozen),
            Self::Half(model) => model.freeze(is_frozen),
        }
    }

    /// See [`ResNet::smooth_labels`].
    pub fn smooth_labels(&mut self, smoothing: f32) {
        match self {
            Self::Single(model) => model.smooth_labels(smoothing),
            Self::Half(model) => model.smooth_labels(smoothing),
        }
    }

    /// Bytes that a step takes, but for parameters and gradients; of a network as it is
    /// [`computed`](Network::computed).
    pub fn memory_len(network: &Network, precision: Precision, batch_max: usize) -> usize {
        match precision {
            Precision::Fp32 => ResNet::<f32>::memory_len(network, batch_max),
            Precision::Bf16 => ResNet::<Bf16>::memory_len(network, batch_max),
        }
    }

    /// See [`ResNet::forward`].
    pub fn forward(
        &mut self,
        params: &mut [f32],
        batch: &Batch,
        await_end: &mut dyn FnMut(&mut [f32], usize) -> bool,
    ) -> bool {
        match self {
            Self::Single(model) => model.forward(params, batch, await_end),
            Self::Half(model) => model.forward(params, batch, await_end),
        }
    }

    /// See [`ResNet::backward`].
    pub fn backward(
        &mut self,
        params: &mut [f32],
        batch: &Batch,
        gradients: &mut [f32],
        pieces: Pieces,
        done: impl FnMut(Bucket) + Send,
    ) -> f32 {
        match self {
            Self::Single(model) => model.backward(params, batch, gradients, pieces, done),
            Self::Half(model) => model.backward(params, batch, gradients, pieces, done),
        }
    }

    /// See [`ResNet::step`].
    pub fn step(
        &mut self,
        params: &mut [f32],
        batch: &Batch,
        gradients: &mut [f32],
        pieces: Pieces,
        done: impl FnMut(Bucket) + Send,
    ) -> f32 {
        match self {
            Self::Single(model) => model.step(params, batch, gradients, pieces, done),
            Self::Half(model) => model.step(params, batch, gradients, pieces, done),
        }
    }

    /// Its layers.
    pub fn network(&self) -> &Network {
        match self {
            Self::Single(model) => &model.network,
            Self::Half(model) => &model.network,
        }
    }

    /// The threads that it computes with.
    pub fn exec(&self) -> Exec<'_> {
        match self {
            Self::Single(model) => model.exec(),
            Self::Half(model) => model.exec(),
        }
    }

    /// Bytes of activations and their gradients.
    pub fn arena_len(&self) -> usize {
        match self {
            Self::Single(model) => model.arena_len(),
            Self::Half(model) => model.arena_len(),
        }
    }
}

/// How convolutions are computed: on tiles directly. Winograd's way saves three quarters of the products, but
/// multiplies what it transforms in `f32` on vectors, which are some ten times as slow.
fn algorithm(precision: Precision, conv: Algorithm, isa: Isa) -> Algorithm {
    match precision == Precision::Bf16 && isa.has_tiles() {
        true => Algorithm::Direct,
        false => conv,
    }
}
