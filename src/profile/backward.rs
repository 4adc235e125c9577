//! Operands of what a backward pass has beside attention, norms and products that give dx.

use super::cases::Body;
use super::filled;
use super::operands::Ring;
use crate::DType;
use crate::Result;
use crate::ops::{self, Activation, Epilogue, Head, Labels, Out, TokenGroups};
use crate::tensor::Tensor;

/// A set of operands; what a kernel has no use for is empty.
struct Set {
    /// Of the storage type: what is written, and what is read.
    y: Tensor,
    x: Tensor,
    h: Tensor,
    /// f32.
    sums: Tensor,
    more: Tensor,
    labels: Labels,
    groups: TokenGroups,
}

impl Ring<'_> {
    /// A launch on (rows, cols); `of` is the kernel's to read.
    pub(super) fn gradients(
        &self,
        kernel: &str,
        [rows, cols, of]: [usize; 3],
        body: Body<'_>,
    ) -> Result<()> {
        let mut sets = self.copies(|| self.set(kernel, [rows, cols, of]))?;
        let (stream, out) = (self.stream(), Out::Accumulate);
        body(sets.len(), &mut |i| {
            let Set { y, x, h, sums, more, labels, groups } = &mut sets[i];
            let (y, x, h) = (y.view_mut(), x.view(), h.view());
            let (sums, f) = (sums.view_mut(), Activation::Gelu);
            match kernel {
                "transpose" => ops::transpose(stream, y, x),
                "activation" => ops::activation(stream, y, x, f),
                "activation_backward" => ops::activation_backward(stream, y, h, x, f),
                "gate_backward" => {
                    let gate = h.block(0..1, 0..1)?;
                    ops::gate_backward(stream, y, sums, x, gate)
                }
                "cross_entropy" => {
                    let logits = more.view().block(0..rows, 0..cols)?;
                    ops::cross_entropy(stream, sums, y, logits, labels, 1.0)
                }
                "embedding_backward" => ops::embedding_backward(stream, sums, groups, x),
                "vision_tokens_backward" => {
                    let (dx, cls) = (Some(y), more.view_mut());
                    ops::vision_tokens_backward(stream, dx, cls, sums, out, x)
                }
                "square_sum" => ops::square_sum(stream, sums, more.view()),
                "clip_factor" => ops::clip_factor(stream, sums, more.view(), 1.0, 1.0),
                _ => {
                    let epilogue = Epilogue { out, ..Epilogue::default() };
                    ops::gemm(stream, sums, x, h, epilogue)
                }
            }
        })
    }

    fn set(&self, kernel: &str, [rows, cols, of]: [usize; 3]) -> Result<Set> {
        let (none, whole, padded) = ([0, 1], [rows, cols], Head::padded(cols));
        // y, x, h, sums and more.
        let shapes = match kernel {
            "transpose" => [[cols, Head::padded(rows)], whole, none, none, none],
            "activation" => [whole, whole, none, none, none],
            "activation_backward" => [whole, whole, whole, none, none],
            "gate_backward" => [whole, whole, [1, 1], [of, 1], none],
            "cross_entropy" => [[rows, padded], none, none, [rows, 1], [rows, padded]],
            "embedding_backward" => [none, whole, none, [of, cols], none],
            "vision_tokens_backward" => {
                [[rows / of * (of - 1), cols], whole, none, [of, cols], [1, cols]]
            }
            "square_sum" => [none, none, none, [of, 2], whole],
            "clip_factor" => [none, none, none, [1, 2], [1, 2]],
            _ => [none, [rows, of], [cols, of], whole, none],
        };
        let [y, x, h, sums, more] = shapes;
        let more = filled(self.stream(), DType::F32, &more)?;
        self.count(&more);
        let mut arena = self.arena()?;
        let ids: Vec<i32> = (0..rows.min(1 << 14)).map(|i| (i * 7919 % of.max(1)) as i32).collect();
        let (labels, tokens) = match kernel {
            "cross_entropy" => (&ids[..], &ids[..0]),
            "embedding_backward" => (&ids[..0], &ids[..]),
            _ => (&ids[..0], &ids[..0]),
        };
        Ok(Set {
            y: self.output(&y)?,
            x: self.input(&x)?,
            h: self.input(&h)?,
            sums: self.zeros(DType::F32, &sums)?,
            more,
            labels: Labels::new(&mut arena, labels, cols)?,
            groups: TokenGroups::new(&mut arena, tokens, |id| Some(id as usize))?,
        })
    }
}
