//! Convolution: forward, gradient by input, gradient by weight, each a sum over (pixel, tap) pairs.
//!
//! ```text
//! for each output pixel o, panel j:       y[o][:, j]  = sum over taps t of o   x[i(o,t)] . w[j][t]
//! for each input pixel i, panel j of Cin: dx[i][:, j] = sum over (o, t) -> i   dy[o] . w'[j][t]
//! for each panel j, rows of Cin:          dw[j][t]    = sum over o             x[i(o,t)]' . dy[o][:, j]
//! ```
//!
//! The pairs come from tables made once per layer. A tap outside the image is not in the table, so the
//! border costs nothing (at 2x2 maps that is half of a 3x3 filter), and a stride only makes the tables
//! shorter.

mod operand;
mod pass;
mod shape;
mod transpose;
mod weight;
mod window;
pub(crate) mod winograd;

use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::base::panel::PANEL;
use crate::base::tile::Target;
use crate::gemm;
use crate::gemm::epilogue::{Epilogue, Store};
use crate::gemm::product::Product;

use pass::{Layout, Pass, Weights};
use transpose::Transposed;
use winograd::{Filter, Winograd};

pub use operand::{Operand, Results, Scratch};
pub use shape::{Conv, ShapeError, panel_index};

impl Conv {
    /// What computes passes by Winograd's algorithm, where it was chosen and pays.
    fn winograd<T: Product>(&self, isa: Isa) -> Option<&Winograd> {
        let pays = |winograd: &&Winograd| isa != Isa::Portable && winograd.pays(T::WORD);
        self.winograd.as_ref().filter(pays)
    }

    /// `y = x * w`; all of `y` is written, as it is finished. `sums` has [`Conv::sums_len`] values for that.
    pub fn forward<'a, T: Product>(
        &self,
        exec: Exec,
        x: impl Into<Operand<'a, T>>,
        w: &[f32],
        Results { values: y, sums, scratch }: Results<T>,
        epilogue: Epilogue<T>,
    ) {
        let x = x.into();
        let n = x.len() / self.input_len(1);
        assert_eq!((x.len(), w.len()), (self.input_len(n), self.weights()));
        if let Some(winograd) = self.winograd::<T>(exec.isa) {
            let (filter, target) = (Filter { w, transposed: false }, Target { values: y, sums });
            let x = x.make(exec);
            return winograd.convolve(exec, x, filter, target, scratch.parts, epilogue);
        }
        let layout = Layout { rows: self.rows(self.output, n), tiles: self.output_tiles(n) };
        let weights = Weights::Panels(T::panels(exec, w, scratch.panels));
        let store = Store::of(epilogue, self.channels_out);
        self.pass_forward().write(exec, x, weights, layout, Target { values: y, sums }, store);
    }

    /// As [`Conv::forward`] for the first layer, whose input and weights are `f32` in every precision.
    pub fn forward_images<T: Product>(
        &self,
        exec: Exec,
        x: &[f32],
        w: &[f32],
        target: Target<T>,
        epilogue: Epilogue<T>,
    ) {
        let n = x.len() / self.input_len(1);
        assert_eq!((x.len(), w.len()), (self.input_len(n), self.weights()));
        self.pass_forward().write_images(exec, x, w, self.output_tiles(n), target, epilogue);
    }

    /// `dx = dy * w'`, or `dx +=` where `add` is set, as it is finished.
    ///
    /// # Panics
    /// If the input channels are no multiple of 64 (the first layer needs no such gradient).
    pub fn backward_input<'a, T: Product>(
        &self,
        exec: Exec,
        dy: impl Into<Operand<'a, T>>,
        w: &[f32],
        Results { values: dx, sums, scratch }: Results<T>,
        add: bool,
        epilogue: Epilogue<T>,
    ) {
        assert!(self.channels_in.is_multiple_of(PANEL), "no gradient by input for this layer");
        let dy = dy.into();
        let n = dy.len() / self.output_len(1);
        assert_eq!((dy.len(), w.len()), (self.output_len(n), self.weights()));
        if let Some(winograd) = self.winograd::<T>(exec.isa).filter(|_| !add) {
            let (filter, target) = (Filter { w, transposed: true }, Target { values: dx, sums });
            let dy = dy.make(exec);
            return winograd.convolve(exec, dy, filter, target, scratch.parts, epilogue);
        }
        let (taps, is_fast, is_pointwise) = (self.taps(), self.is_fast, self.is_pointwise);
        let table = &self.backward;
        let pass = Pass { table, taps, k: self.channels_out, is_fast, is_pointwise };
        let layout = Layout { rows: self.rows(self.input, n), tiles: self.input_tiles(n) };
        let channels = [self.channels_in, self.channels_out];
        let transposed = Transposed { weights: w, taps, channels, used: self.used };
        let weights = Weights::Transposed(transposed, &mut scratch.panels[..self.weights()]);
        let store = Store { add, ..Store::of(epilogue, self.channels_in) };
        pass.write(exec, dy, weights, layout, Target { values: dx, sums }, store);
    }

    /// `dw = x' * dy`; all of `dw` is written. `scratch` has [`Conv::scratch_len`] values.
    pub fn backward_weight<T: Product>(
        &self,
        exec: Exec,
        x: &[T],
        dy: &[T],
        dw: &mut [f32],
        scratch: &mut [f32],
    ) {
        let n = x.len() / self.input_len(1);
        assert_eq!((x.len(), dy.len()), (self.input_len(n), self.output_len(n)));
        if let Some(winograd) = self.winograd::<T>(exec.isa) {
            return winograd.backward_weight(exec, n, x, dy, dw, scratch);
        }
        if exec.isa != Isa::Portable
            && let Some(cut) = self.pairs(n)
            && let (Some(x), Some(dy)) = (T::single(x), T::single(dy))
        {
            return self.sum_pairs(exec, cut, x, dy, dw, scratch);
        }
        self.sum_parts(exec, x, dy, dw, scratch, |dy, strips| T::strips(exec.isa, dy, strips));
    }

    /// As [`Conv::backward_weight`] for the first layer, whose input is `f32` in every precision.
    pub fn backward_weight_images<T: Product>(
        &self,
        exec: Exec,
        x: &[f32],
        dy: &[T],
        dw: &mut [f32],
        scratch: &mut [f32],
    ) {
        self.sum_parts(exec, x, dy, dw, scratch, |dy, strips| {
            exec.isa.run(
                #[inline(always)]
                || gemm::strips(dy, strips, T::widen),
            );
        });
    }

    /// Values that passes over `n` images need beside their operands.
    pub fn scratch_len(&self, n: usize) -> usize {
        let parts = self.parts_len(n);
        self.winograd.map_or(parts, |winograd| parts.max(winograd.scratch_len(n)))
    }

    fn pass_forward(&self) -> Pass<'_> {
        let (taps, is_fast, is_pointwise) = (self.taps(), self.is_fast, self.is_pointwise);
        Pass { table: &self.forward, taps, k: self.channels_in, is_fast, is_pointwise }
    }
}
