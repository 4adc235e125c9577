//! Made by bindgen from `kernels/contracts.h`; see `tests/contracts.rs`.
#![allow(missing_docs, rustdoc::all, clippy::all)]

#[doc = " `swiglu`: y = silu(gate) * up, where a row of x is \\[gate | up\\].\n\n  Source    arXiv:2002.05202 eq. 6; transformers LlamaMLP\n  Entries   swiglu_{f32,bf16,f16}\n  Numerics  f32, one rounding"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SwigluParams {
    #[doc = "(rows,cols) T"]
    pub y: *mut ::core::ffi::c_void,
    #[doc = "(rows,2*cols) T"]
    pub x: *const ::core::ffi::c_void,
    pub rows: i64,
    pub cols: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SwigluParams"][::core::mem::size_of::<SwigluParams>() - 32usize];
    ["Alignment of SwigluParams"][::core::mem::align_of::<SwigluParams>() - 8usize];
    ["Offset of field: SwigluParams::y"][::core::mem::offset_of!(SwigluParams, y) - 0usize];
    ["Offset of field: SwigluParams::x"][::core::mem::offset_of!(SwigluParams, x) - 8usize];
    ["Offset of field: SwigluParams::rows"][::core::mem::offset_of!(SwigluParams, rows) - 16usize];
    ["Offset of field: SwigluParams::cols"][::core::mem::offset_of!(SwigluParams, cols) - 24usize];
};
#[doc = " `swiglu_backward`: the gradients of y = silu(gate) * up, where rows of x and dx are \\[gate | up\\].\n\n  With s = sigmoid(gate): dgate = dy up s (1 + gate (1 - s)), dup = dy gate s.\n\n  Source    arXiv:2002.05202 eq. 6, differentiated\n  Entries   swiglu_backward_{f32,bf16,f16}\n  Numerics  f32, one rounding"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SwigluBackwardParams {
    #[doc = "(rows,2*cols) T"]
    pub dx: *mut ::core::ffi::c_void,
    #[doc = "(rows,cols) T"]
    pub dy: *const ::core::ffi::c_void,
    #[doc = "(rows,2*cols) T"]
    pub x: *const ::core::ffi::c_void,
    pub rows: i64,
    pub cols: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SwigluBackwardParams"][::core::mem::size_of::<SwigluBackwardParams>() - 40usize];
    ["Alignment of SwigluBackwardParams"][::core::mem::align_of::<SwigluBackwardParams>() - 8usize];
    ["Offset of field: SwigluBackwardParams::dx"]
        [::core::mem::offset_of!(SwigluBackwardParams, dx) - 0usize];
    ["Offset of field: SwigluBackwardParams::dy"]
        [::core::mem::offset_of!(SwigluBackwardParams, dy) - 8usize];
    ["Offset of field: SwigluBackwardParams::x"]
        [::core::mem::offset_of!(SwigluBackwardParams, x) - 16usize];
    ["Offset of field: SwigluBackwardParams::rows"]
        [::core::mem::offset_of!(SwigluBackwardParams, rows) - 24usize];
    ["Offset of field: SwigluBackwardParams::cols"]
        [::core::mem::offset_of!(SwigluBackwardParams, cols) - 32usize];
};
#[doc = " `activation`: y = f(x), f being 0 identity, 1 GELU (erf), 2 QuickGELU x*sigmoid(1.702 x), as in\n  the epilogue of `gemm`: for a forward pass that keeps x.\n\n  Source    arXiv:1606.08415 eq. 2; QuickGELU of open_clip\n  Entries   activation_{f32,bf16,f16}\n  Numerics  f32, one rounding"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ActivationParams {
    #[doc = "(cells) T, or x itself"]
    pub y: *mut ::core::ffi::c_void,
    #[doc = "(cells) T"]
    pub x: *const ::core::ffi::c_void,
    pub cells: i64,
    pub activation: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ActivationParams"][::core::mem::size_of::<ActivationParams>() - 32usize];
    ["Alignment of ActivationParams"][::core::mem::align_of::<ActivationParams>() - 8usize];
    ["Offset of field: ActivationParams::y"][::core::mem::offset_of!(ActivationParams, y) - 0usize];
    ["Offset of field: ActivationParams::x"][::core::mem::offset_of!(ActivationParams, x) - 8usize];
    ["Offset of field: ActivationParams::cells"]
        [::core::mem::offset_of!(ActivationParams, cells) - 16usize];
    ["Offset of field: ActivationParams::activation"]
        [::core::mem::offset_of!(ActivationParams, activation) - 24usize];
    ["Offset of field: ActivationParams::reserved"]
        [::core::mem::offset_of!(ActivationParams, reserved) - 28usize];
};
#[doc = " `activation_backward`: dx = dy f'(x), with f as in `activation`: GELU' = Phi(x) + x phi(x),\n  QuickGELU' = s (1 + 1.702 x (1 - s)) with s = sigmoid(1.702 x).\n\n  Source    arXiv:1606.08415 eq. 2, differentiated\n  Entries   activation_backward_{f32,bf16,f16}\n  Numerics  f32, one rounding"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ActivationBackwardParams {
    #[doc = "(cells) T, or dy itself"]
    pub dx: *mut ::core::ffi::c_void,
    #[doc = "(cells) T"]
    pub dy: *const ::core::ffi::c_void,
    #[doc = "(cells) T, before f"]
    pub x: *const ::core::ffi::c_void,
    pub cells: i64,
    pub activation: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ActivationBackwardParams"]
        [::core::mem::size_of::<ActivationBackwardParams>() - 40usize];
    ["Alignment of ActivationBackwardParams"]
        [::core::mem::align_of::<ActivationBackwardParams>() - 8usize];
    ["Offset of field: ActivationBackwardParams::dx"]
        [::core::mem::offset_of!(ActivationBackwardParams, dx) - 0usize];
    ["Offset of field: ActivationBackwardParams::dy"]
        [::core::mem::offset_of!(ActivationBackwardParams, dy) - 8usize];
    ["Offset of field: ActivationBackwardParams::x"]
        [::core::mem::offset_of!(ActivationBackwardParams, x) - 16usize];
    ["Offset of field: ActivationBackwardParams::cells"]
        [::core::mem::offset_of!(ActivationBackwardParams, cells) - 24usize];
    ["Offset of field: ActivationBackwardParams::activation"]
        [::core::mem::offset_of!(ActivationBackwardParams, activation) - 32usize];
    ["Offset of field: ActivationBackwardParams::reserved"]
        [::core::mem::offset_of!(ActivationBackwardParams, reserved) - 36usize];
};
#[doc = " `adamw`: one step of AdamW with both moments in f32.\n\n  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2;  p += step_size * m / (sqrt(v) + eps)\n  and then p *= keep, where g is scaled by grad_scale, and the step's number t has gone into\n  step_size = -lr sqrt(1-beta2^t) / (1-beta1^t), eps sqrt(1-beta2^t), and into\n  keep = 1 - lr weight_decay.\n  Where g is not finite m = v = 0 and p stays; if grad_scale is not finite, nothing changes.\n\n  Source    arXiv:1711.05101 alg. 2; order of update and decay as in bitsandbytes'\n            kOptimizer32bit2State\n  Entries   adamw_{f32,bf16,f16}: T of param\n  Limits    param, master, m, v and grad 16-byte aligned\n  Numerics  f32, no contraction: twin and card agree to the bit. param is rounded to T after the\n            update and after the decay, or, if `seed` is not 0 (T bf16), once and stochastically.\n            With `master`, p is the master in f32 and param its rounding."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AdamwParams {
    #[doc = "(n) T"]
    pub param: *mut ::core::ffi::c_void,
    #[doc = "(n), or null"]
    pub master: *mut f32,
    #[doc = "(n)"]
    pub m: *mut f32,
    #[doc = "(n)"]
    pub v: *mut f32,
    #[doc = "(n)"]
    pub grad: *const f32,
    #[doc = "(1), or null for 1"]
    pub grad_scale: *const f32,
    pub n: i64,
    pub seed: u64,
    pub beta1: f32,
    pub beta2: f32,
    pub step_size: f32,
    pub eps: f32,
    pub keep: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AdamwParams"][::core::mem::size_of::<AdamwParams>() - 88usize];
    ["Alignment of AdamwParams"][::core::mem::align_of::<AdamwParams>() - 8usize];
    ["Offset of field: AdamwParams::param"][::core::mem::offset_of!(AdamwParams, param) - 0usize];
    ["Offset of field: AdamwParams::master"][::core::mem::offset_of!(AdamwParams, master) - 8usize];
    ["Offset of field: AdamwParams::m"][::core::mem::offset_of!(AdamwParams, m) - 16usize];
    ["Offset of field: AdamwParams::v"][::core::mem::offset_of!(AdamwParams, v) - 24usize];
    ["Offset of field: AdamwParams::grad"][::core::mem::offset_of!(AdamwParams, grad) - 32usize];
    ["Offset of field: AdamwParams::grad_scale"]
        [::core::mem::offset_of!(AdamwParams, grad_scale) - 40usize];
    ["Offset of field: AdamwParams::n"][::core::mem::offset_of!(AdamwParams, n) - 48usize];
    ["Offset of field: AdamwParams::seed"][::core::mem::offset_of!(AdamwParams, seed) - 56usize];
    ["Offset of field: AdamwParams::beta1"][::core::mem::offset_of!(AdamwParams, beta1) - 64usize];
    ["Offset of field: AdamwParams::beta2"][::core::mem::offset_of!(AdamwParams, beta2) - 68usize];
    ["Offset of field: AdamwParams::step_size"]
        [::core::mem::offset_of!(AdamwParams, step_size) - 72usize];
    ["Offset of field: AdamwParams::eps"][::core::mem::offset_of!(AdamwParams, eps) - 76usize];
    ["Offset of field: AdamwParams::keep"][::core::mem::offset_of!(AdamwParams, keep) - 80usize];
    ["Offset of field: AdamwParams::reserved"]
        [::core::mem::offset_of!(AdamwParams, reserved) - 84usize];
};
#[doc = " The 256 numbers that an 8-bit code may stand for, and how to find the nearest without a search.\n\n  A cell is the numbers of one sign that share exponent and 7 bits of mantissa; cell 0 is those\n  below 2^-23. No cell has numbers of more than two codes, so code(x) = c + (x >= above\\[c\\]) for\n  the c of x's cell. `above` is exact: ties go where the search of bitsandbytes leaves them, and\n  where numbers have signs a negative one (and -0) never has the code of 0."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Adamw8Codebook {
    #[doc = "by code, ascending"]
    pub value: [f32; 256usize],
    #[doc = "the least number of the next code; NaN after the last"]
    pub above: [f32; 256usize],
    #[doc = "the least code of each cell; positive numbers, then negative"]
    pub cell: [[u8; 2948usize]; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Adamw8Codebook"][::core::mem::size_of::<Adamw8Codebook>() - 7944usize];
    ["Alignment of Adamw8Codebook"][::core::mem::align_of::<Adamw8Codebook>() - 4usize];
    ["Offset of field: Adamw8Codebook::value"]
        [::core::mem::offset_of!(Adamw8Codebook, value) - 0usize];
    ["Offset of field: Adamw8Codebook::above"]
        [::core::mem::offset_of!(Adamw8Codebook, above) - 1024usize];
    ["Offset of field: Adamw8Codebook::cell"]
        [::core::mem::offset_of!(Adamw8Codebook, cell) - 2048usize];
};
#[doc = " `adamw8`: one step of AdamW with both moments in 8 bits, by blocks that share a scale.\n\n  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2;  p += step_size * m / (sqrt(v) + eps)\n  and then p *= keep, where g is scaled by grad_scale, and the step's number t has gone into\n  step_size = -lr sqrt(1-beta2^t) / (1-beta1^t), eps sqrt(1-beta2^t), and into\n  keep = 1 - lr weight_decay.\n  m and v are stored as value\\[code\\] * absmax of their block, after p has used them unrounded.\n  m / d is m (1/d). What a code is of, x = m / absmax, is q + (1/absmax) (m - absmax q) of\n  q = m (1/absmax), the sums fused, which nearly always rounds as the division does (none of 3e8\n  otherwise); where an absmax of the block is not in \\[2^-72, 2^60) it is the division.\n  Where g is not finite m = v = 0 and p stays; if grad_scale is not finite, nothing changes.\n\n  Source    arXiv:2110.02861 sec. 2; bitsandbytes kOptimizerStatic8bit2StateBlockwise\n  Entries   adamw8_{f32,bf16,f16}: T of param\n  Limits    block 256 or 2048; n < 2^31; param 16-byte aligned, codes 8-byte\n  Numerics  f32, no contraction: twin and card agree to the bit. param is rounded to T after the\n            update and after the decay, or, if `seed` is not 0 (T bf16), once and stochastically.\n            With `master`, p is the master in f32 and param its rounding."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Adamw8Params {
    #[doc = "(n) T"]
    pub param: *mut ::core::ffi::c_void,
    #[doc = "(n), or null"]
    pub master: *mut f32,
    #[doc = "(n) of m and of v"]
    pub code1: *mut u8,
    #[doc = "(n) of m and of v"]
    pub code2: *mut u8,
    #[doc = "(ceil(n/block))"]
    pub absmax1: *mut f32,
    #[doc = "(ceil(n/block))"]
    pub absmax2: *mut f32,
    #[doc = "(n)"]
    pub grad: *const f32,
    #[doc = "(1), or null for 1"]
    pub grad_scale: *const f32,
    #[doc = "of m, signed; of v"]
    pub book1: *const Adamw8Codebook,
    #[doc = "of m, signed; of v"]
    pub book2: *const Adamw8Codebook,
    pub n: i64,
    pub seed: u64,
    pub block: i32,
    pub beta1: f32,
    pub beta2: f32,
    pub step_size: f32,
    pub eps: f32,
    pub keep: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Adamw8Params"][::core::mem::size_of::<Adamw8Params>() - 120usize];
    ["Alignment of Adamw8Params"][::core::mem::align_of::<Adamw8Params>() - 8usize];
    ["Offset of field: Adamw8Params::param"][::core::mem::offset_of!(Adamw8Params, param) - 0usize];
    ["Offset of field: Adamw8Params::master"]
        [::core::mem::offset_of!(Adamw8Params, master) - 8usize];
    ["Offset of field: Adamw8Params::code1"]
        [::core::mem::offset_of!(Adamw8Params, code1) - 16usize];
    ["Offset of field: Adamw8Params::code2"]
        [::core::mem::offset_of!(Adamw8Params, code2) - 24usize];
    ["Offset of field: Adamw8Params::absmax1"]
        [::core::mem::offset_of!(Adamw8Params, absmax1) - 32usize];
    ["Offset of field: Adamw8Params::absmax2"]
        [::core::mem::offset_of!(Adamw8Params, absmax2) - 40usize];
    ["Offset of field: Adamw8Params::grad"][::core::mem::offset_of!(Adamw8Params, grad) - 48usize];
    ["Offset of field: Adamw8Params::grad_scale"]
        [::core::mem::offset_of!(Adamw8Params, grad_scale) - 56usize];
    ["Offset of field: Adamw8Params::book1"]
        [::core::mem::offset_of!(Adamw8Params, book1) - 64usize];
    ["Offset of field: Adamw8Params::book2"]
        [::core::mem::offset_of!(Adamw8Params, book2) - 72usize];
    ["Offset of field: Adamw8Params::n"][::core::mem::offset_of!(Adamw8Params, n) - 80usize];
    ["Offset of field: Adamw8Params::seed"][::core::mem::offset_of!(Adamw8Params, seed) - 88usize];
    ["Offset of field: Adamw8Params::block"]
        [::core::mem::offset_of!(Adamw8Params, block) - 96usize];
    ["Offset of field: Adamw8Params::beta1"]
        [::core::mem::offset_of!(Adamw8Params, beta1) - 100usize];
    ["Offset of field: Adamw8Params::beta2"]
        [::core::mem::offset_of!(Adamw8Params, beta2) - 104usize];
    ["Offset of field: Adamw8Params::step_size"]
        [::core::mem::offset_of!(Adamw8Params, step_size) - 108usize];
    ["Offset of field: Adamw8Params::eps"][::core::mem::offset_of!(Adamw8Params, eps) - 112usize];
    ["Offset of field: Adamw8Params::keep"][::core::mem::offset_of!(Adamw8Params, keep) - 116usize];
};
#[doc = " `attention`: O = softmax(scale * Q K^T) V per batch entry and head, every query sees every key.\n  Keys and values may come in two segments that are never concatenated in memory: the Perceiver's\n  \\[media | latents\\]; the vision tower uses the first only (k1_len = 0).\n\n  Source    arXiv:1706.03762 eq. 1; open_flamingo/src/helpers.py PerceiverAttention\n  Entries   attention_{f32,bf16,f16}\n  Limits    1 <= k0_len + k1_len < 2^31; k1 and v1 are null only if k1_len = 0; scale > 0\n  Numerics  one pass with a running maximum and sum in f32"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AttentionParams {
    #[doc = "(batch, q_len, heads*head_dim) T, row stride o_stride"]
    pub o: *mut ::core::ffi::c_void,
    #[doc = "(batch, q_len, heads*head_dim) T, row stride q_stride"]
    pub q: *const ::core::ffi::c_void,
    #[doc = "(batch, k0_len, heads*head_dim) T, row stride kv0_stride"]
    pub k0: *const ::core::ffi::c_void,
    #[doc = "(batch, k0_len, heads*head_dim) T, row stride kv0_stride"]
    pub v0: *const ::core::ffi::c_void,
    #[doc = "(batch, k1_len, heads*head_dim) T, row stride kv1_stride, or null"]
    pub k1: *const ::core::ffi::c_void,
    #[doc = "(batch, k1_len, heads*head_dim) T, row stride kv1_stride, or null"]
    pub v1: *const ::core::ffi::c_void,
    pub batch: i64,
    pub q_len: i64,
    pub k0_len: i64,
    pub k1_len: i64,
    #[doc = "elements between rows"]
    pub o_stride: i64,
    #[doc = "elements between rows"]
    pub q_stride: i64,
    #[doc = "elements between rows"]
    pub kv0_stride: i64,
    #[doc = "elements between rows"]
    pub kv1_stride: i64,
    pub heads: i32,
    pub head_dim: i32,
    pub scale: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionParams"][::core::mem::size_of::<AttentionParams>() - 128usize];
    ["Alignment of AttentionParams"][::core::mem::align_of::<AttentionParams>() - 8usize];
    ["Offset of field: AttentionParams::o"][::core::mem::offset_of!(AttentionParams, o) - 0usize];
    ["Offset of field: AttentionParams::q"][::core::mem::offset_of!(AttentionParams, q) - 8usize];
    ["Offset of field: AttentionParams::k0"]
        [::core::mem::offset_of!(AttentionParams, k0) - 16usize];
    ["Offset of field: AttentionParams::v0"]
        [::core::mem::offset_of!(AttentionParams, v0) - 24usize];
    ["Offset of field: AttentionParams::k1"]
        [::core::mem::offset_of!(AttentionParams, k1) - 32usize];
    ["Offset of field: AttentionParams::v1"]
        [::core::mem::offset_of!(AttentionParams, v1) - 40usize];
    ["Offset of field: AttentionParams::batch"]
        [::core::mem::offset_of!(AttentionParams, batch) - 48usize];
    ["Offset of field: AttentionParams::q_len"]
        [::core::mem::offset_of!(AttentionParams, q_len) - 56usize];
    ["Offset of field: AttentionParams::k0_len"]
        [::core::mem::offset_of!(AttentionParams, k0_len) - 64usize];
    ["Offset of field: AttentionParams::k1_len"]
        [::core::mem::offset_of!(AttentionParams, k1_len) - 72usize];
    ["Offset of field: AttentionParams::o_stride"]
        [::core::mem::offset_of!(AttentionParams, o_stride) - 80usize];
    ["Offset of field: AttentionParams::q_stride"]
        [::core::mem::offset_of!(AttentionParams, q_stride) - 88usize];
    ["Offset of field: AttentionParams::kv0_stride"]
        [::core::mem::offset_of!(AttentionParams, kv0_stride) - 96usize];
    ["Offset of field: AttentionParams::kv1_stride"]
        [::core::mem::offset_of!(AttentionParams, kv1_stride) - 104usize];
    ["Offset of field: AttentionParams::heads"]
        [::core::mem::offset_of!(AttentionParams, heads) - 112usize];
    ["Offset of field: AttentionParams::head_dim"]
        [::core::mem::offset_of!(AttentionParams, head_dim) - 116usize];
    ["Offset of field: AttentionParams::scale"]
        [::core::mem::offset_of!(AttentionParams, scale) - 120usize];
    ["Offset of field: AttentionParams::reserved"]
        [::core::mem::offset_of!(AttentionParams, reserved) - 124usize];
};
#[doc = " What one text row may look at: the latents of images begin .. end of the launch's table.\n  An empty span gives a zero output row. `uniform` averages the span's values instead of\n  attending, which is what the original's masked softmax does for a marker without an image."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MediaSpan {
    pub begin: i32,
    pub end: i32,
    pub uniform: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MediaSpan"][::core::mem::size_of::<MediaSpan>() - 12usize];
    ["Alignment of MediaSpan"][::core::mem::align_of::<MediaSpan>() - 4usize];
    ["Offset of field: MediaSpan::begin"][::core::mem::offset_of!(MediaSpan, begin) - 0usize];
    ["Offset of field: MediaSpan::end"][::core::mem::offset_of!(MediaSpan, end) - 4usize];
    ["Offset of field: MediaSpan::uniform"][::core::mem::offset_of!(MediaSpan, uniform) - 8usize];
};
#[doc = " `cross_attention`: O = softmax(scale * Q K^T) V per row and head, over the latents of the images\n  in the row's span.\n\n  Keys and values of image j are the halves of rows of kv\\[j\\] (latents, 2*heads*head_dim): keys,\n  values. Nothing is computed for 16 consecutive rows of which none sees the image.\n\n  Source    arXiv:2204.14198 sec. 2.3; open_flamingo/src/helpers.py MaskedCrossAttention\n  Entries   cross_attention_{f32,bf16,f16}\n  Limits    spans inside the table; rows < 2^31; scale > 0\n  Numerics  one pass with a running maximum and sum in f32; 0 for rows without an image"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CrossAttentionParams {
    #[doc = "(rows, heads*head_dim) T"]
    pub o: *mut ::core::ffi::c_void,
    #[doc = "(rows, heads*head_dim) T"]
    pub q: *const ::core::ffi::c_void,
    #[doc = "(images) pointers to (latents, 2*heads*head_dim) T of this layer"]
    pub kv: *const *const ::core::ffi::c_void,
    #[doc = "(rows)"]
    pub spans: *const MediaSpan,
    pub rows: i64,
    pub images: i64,
    pub latents: i32,
    pub heads: i32,
    pub head_dim: i32,
    pub scale: f32,
    #[doc = "(row, image) pairs that are not masked; for `cost` only"]
    pub visible: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CrossAttentionParams"][::core::mem::size_of::<CrossAttentionParams>() - 72usize];
    ["Alignment of CrossAttentionParams"][::core::mem::align_of::<CrossAttentionParams>() - 8usize];
    ["Offset of field: CrossAttentionParams::o"]
        [::core::mem::offset_of!(CrossAttentionParams, o) - 0usize];
    ["Offset of field: CrossAttentionParams::q"]
        [::core::mem::offset_of!(CrossAttentionParams, q) - 8usize];
    ["Offset of field: CrossAttentionParams::kv"]
        [::core::mem::offset_of!(CrossAttentionParams, kv) - 16usize];
    ["Offset of field: CrossAttentionParams::spans"]
        [::core::mem::offset_of!(CrossAttentionParams, spans) - 24usize];
    ["Offset of field: CrossAttentionParams::rows"]
        [::core::mem::offset_of!(CrossAttentionParams, rows) - 32usize];
    ["Offset of field: CrossAttentionParams::images"]
        [::core::mem::offset_of!(CrossAttentionParams, images) - 40usize];
    ["Offset of field: CrossAttentionParams::latents"]
        [::core::mem::offset_of!(CrossAttentionParams, latents) - 48usize];
    ["Offset of field: CrossAttentionParams::heads"]
        [::core::mem::offset_of!(CrossAttentionParams, heads) - 52usize];
    ["Offset of field: CrossAttentionParams::head_dim"]
        [::core::mem::offset_of!(CrossAttentionParams, head_dim) - 56usize];
    ["Offset of field: CrossAttentionParams::scale"]
        [::core::mem::offset_of!(CrossAttentionParams, scale) - 60usize];
    ["Offset of field: CrossAttentionParams::visible"]
        [::core::mem::offset_of!(CrossAttentionParams, visible) - 64usize];
};
#[doc = " What a query's softmax came to: of the first launch, for the second."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AttendedRow {
    #[doc = "log of the sum of exponentials, in units that the device chooses"]
    pub lse: f32,
    #[doc = "sum over keys of P dP"]
    pub delta: f32,
    #[doc = "the keys that it sees, of its batch entry; hi not included"]
    pub lo: i32,
    #[doc = "the keys that it sees, of its batch entry; hi not included"]
    pub hi: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttendedRow"][::core::mem::size_of::<AttendedRow>() - 16usize];
    ["Alignment of AttendedRow"][::core::mem::align_of::<AttendedRow>() - 4usize];
    ["Offset of field: AttendedRow::lse"][::core::mem::offset_of!(AttendedRow, lse) - 0usize];
    ["Offset of field: AttendedRow::delta"][::core::mem::offset_of!(AttendedRow, delta) - 4usize];
    ["Offset of field: AttendedRow::lo"][::core::mem::offset_of!(AttendedRow, lo) - 8usize];
    ["Offset of field: AttendedRow::hi"][::core::mem::offset_of!(AttendedRow, hi) - 12usize];
};
#[doc = " `attention_backward`: the gradients of O = softmax(scale * Q K^T + bias) V, given dO, for every\n  attention of the model. Two launches: `is_keys` 0 computes dQ and what the rows' softmax came\n  to, `is_keys` 1 computes dK and dV from that.\n\n  P = softmax(scale * Q K^T + bias);  dP = dO V^T;  delta = sum over keys of P dP;\n  dS = P (dP - delta);  dQ = scale * dS K;  dK = scale * dS^T Q;  dV = P^T dO\n\n  Query i of a batch entry sees keys lo .. hi of it and no others: all of them; 0 .. i+1 if there\n  are `begin`, which divides the rows of queries and of keys into `batch` sequences; the latents\n  of the images in spans\\[i\\] if there are `spans`. The bias is slopes\\[h\\] * (key - (hi-1)), ALiBi.\n  A row that sees nothing has no gradient; a `uniform` one averages values, and has dV only.\n\n  Source    arXiv:1706.03762 eq. 1, differentiated as in arXiv:2205.14135 alg. 4; masks as in\n            `attention`, `self_attention`, `cross_attention`\n  Entries   attention_backward_{f32,bf16,f16}\n  Limits    k0_len + k1_len < 2^31; k1, v1, dk1 and dv1 are null only if k1_len = 0; with `begin`\n            k1_len = 0, and q_len = k0_len is the rows of all sequences; with `spans` k1_len = 0\n            and batch = 1; f16 holds every dS\n  Numerics  f32; weights and dS are multiplied as sums of two T; gradients are overwritten, in an\n            order of summation that does not depend on the device"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AttentionBackwardParams {
    #[doc = "(batch, q_len, heads*head_dim) T, row stride dq_stride"]
    pub dq: *mut ::core::ffi::c_void,
    #[doc = "(batch, k0_len, heads*head_dim) T, row stride dkv0_stride"]
    pub dk0: *mut ::core::ffi::c_void,
    #[doc = "(batch, k0_len, heads*head_dim) T, row stride dkv0_stride"]
    pub dv0: *mut ::core::ffi::c_void,
    #[doc = "(batch, k1_len, heads*head_dim) T, row stride dkv1_stride, or null"]
    pub dk1: *mut ::core::ffi::c_void,
    #[doc = "(batch, k1_len, heads*head_dim) T, row stride dkv1_stride, or null"]
    pub dv1: *mut ::core::ffi::c_void,
    #[doc = "(heads, batch*q_len), at a multiple of 16 bytes"]
    pub statistics: *mut AttendedRow,
    #[doc = "(batch, q_len, heads*head_dim) T, row stride do_stride"]
    pub d_o: *const ::core::ffi::c_void,
    #[doc = "(batch, q_len, heads*head_dim) T, row stride q_stride"]
    pub q: *const ::core::ffi::c_void,
    #[doc = "(batch, k0_len, heads*head_dim) T, row stride kv0_stride"]
    pub k0: *const ::core::ffi::c_void,
    #[doc = "(batch, k0_len, heads*head_dim) T, row stride kv0_stride"]
    pub v0: *const ::core::ffi::c_void,
    #[doc = "(batch, k1_len, heads*head_dim) T, row stride kv1_stride, or null"]
    pub k1: *const ::core::ffi::c_void,
    #[doc = "(batch, k1_len, heads*head_dim) T, row stride kv1_stride, or null"]
    pub v1: *const ::core::ffi::c_void,
    #[doc = "(batch+1): the first row of each sequence, or null"]
    pub begin: *const i32,
    #[doc = "(q_len), or null"]
    pub spans: *const MediaSpan,
    #[doc = "(heads) ALiBi slopes, or null"]
    pub slopes: *const f32,
    pub batch: i64,
    pub q_len: i64,
    pub k0_len: i64,
    pub k1_len: i64,
    #[doc = "elements between rows"]
    pub dq_stride: i64,
    #[doc = "elements between rows"]
    pub dkv0_stride: i64,
    #[doc = "elements between rows"]
    pub dkv1_stride: i64,
    pub do_stride: i64,
    pub q_stride: i64,
    pub kv0_stride: i64,
    pub kv1_stride: i64,
    pub heads: i32,
    pub head_dim: i32,
    pub scale: f32,
    #[doc = "per image, with `spans`"]
    pub latents: i32,
    #[doc = "0 dq and statistics, 1 dk and dv"]
    pub is_keys: i32,
    pub reserved: i32,
    #[doc = "(query, key) pairs that are not masked; for `cost` only"]
    pub pairs: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionBackwardParams"]
        [::core::mem::size_of::<AttentionBackwardParams>() - 240usize];
    ["Alignment of AttentionBackwardParams"]
        [::core::mem::align_of::<AttentionBackwardParams>() - 8usize];
    ["Offset of field: AttentionBackwardParams::dq"]
        [::core::mem::offset_of!(AttentionBackwardParams, dq) - 0usize];
    ["Offset of field: AttentionBackwardParams::dk0"]
        [::core::mem::offset_of!(AttentionBackwardParams, dk0) - 8usize];
    ["Offset of field: AttentionBackwardParams::dv0"]
        [::core::mem::offset_of!(AttentionBackwardParams, dv0) - 16usize];
    ["Offset of field: AttentionBackwardParams::dk1"]
        [::core::mem::offset_of!(AttentionBackwardParams, dk1) - 24usize];
    ["Offset of field: AttentionBackwardParams::dv1"]
        [::core::mem::offset_of!(AttentionBackwardParams, dv1) - 32usize];
    ["Offset of field: AttentionBackwardParams::statistics"]
        [::core::mem::offset_of!(AttentionBackwardParams, statistics) - 40usize];
    ["Offset of field: AttentionBackwardParams::d_o"]
        [::core::mem::offset_of!(AttentionBackwardParams, d_o) - 48usize];
    ["Offset of field: AttentionBackwardParams::q"]
        [::core::mem::offset_of!(AttentionBackwardParams, q) - 56usize];
    ["Offset of field: AttentionBackwardParams::k0"]
        [::core::mem::offset_of!(AttentionBackwardParams, k0) - 64usize];
    ["Offset of field: AttentionBackwardParams::v0"]
        [::core::mem::offset_of!(AttentionBackwardParams, v0) - 72usize];
    ["Offset of field: AttentionBackwardParams::k1"]
        [::core::mem::offset_of!(AttentionBackwardParams, k1) - 80usize];
    ["Offset of field: AttentionBackwardParams::v1"]
        [::core::mem::offset_of!(AttentionBackwardParams, v1) - 88usize];
    ["Offset of field: AttentionBackwardParams::begin"]
        [::core::mem::offset_of!(AttentionBackwardParams, begin) - 96usize];
    ["Offset of field: AttentionBackwardParams::spans"]
        [::core::mem::offset_of!(AttentionBackwardParams, spans) - 104usize];
    ["Offset of field: AttentionBackwardParams::slopes"]
        [::core::mem::offset_of!(AttentionBackwardParams, slopes) - 112usize];
    ["Offset of field: AttentionBackwardParams::batch"]
        [::core::mem::offset_of!(AttentionBackwardParams, batch) - 120usize];
    ["Offset of field: AttentionBackwardParams::q_len"]
        [::core::mem::offset_of!(AttentionBackwardParams, q_len) - 128usize];
    ["Offset of field: AttentionBackwardParams::k0_len"]
        [::core::mem::offset_of!(AttentionBackwardParams, k0_len) - 136usize];
    ["Offset of field: AttentionBackwardParams::k1_len"]
        [::core::mem::offset_of!(AttentionBackwardParams, k1_len) - 144usize];
    ["Offset of field: AttentionBackwardParams::dq_stride"]
        [::core::mem::offset_of!(AttentionBackwardParams, dq_stride) - 152usize];
    ["Offset of field: AttentionBackwardParams::dkv0_stride"]
        [::core::mem::offset_of!(AttentionBackwardParams, dkv0_stride) - 160usize];
    ["Offset of field: AttentionBackwardParams::dkv1_stride"]
        [::core::mem::offset_of!(AttentionBackwardParams, dkv1_stride) - 168usize];
    ["Offset of field: AttentionBackwardParams::do_stride"]
        [::core::mem::offset_of!(AttentionBackwardParams, do_stride) - 176usize];
    ["Offset of field: AttentionBackwardParams::q_stride"]
        [::core::mem::offset_of!(AttentionBackwardParams, q_stride) - 184usize];
    ["Offset of field: AttentionBackwardParams::kv0_stride"]
        [::core::mem::offset_of!(AttentionBackwardParams, kv0_stride) - 192usize];
    ["Offset of field: AttentionBackwardParams::kv1_stride"]
        [::core::mem::offset_of!(AttentionBackwardParams, kv1_stride) - 200usize];
    ["Offset of field: AttentionBackwardParams::heads"]
        [::core::mem::offset_of!(AttentionBackwardParams, heads) - 208usize];
    ["Offset of field: AttentionBackwardParams::head_dim"]
        [::core::mem::offset_of!(AttentionBackwardParams, head_dim) - 212usize];
    ["Offset of field: AttentionBackwardParams::scale"]
        [::core::mem::offset_of!(AttentionBackwardParams, scale) - 216usize];
    ["Offset of field: AttentionBackwardParams::latents"]
        [::core::mem::offset_of!(AttentionBackwardParams, latents) - 220usize];
    ["Offset of field: AttentionBackwardParams::is_keys"]
        [::core::mem::offset_of!(AttentionBackwardParams, is_keys) - 224usize];
    ["Offset of field: AttentionBackwardParams::reserved"]
        [::core::mem::offset_of!(AttentionBackwardParams, reserved) - 228usize];
    ["Offset of field: AttentionBackwardParams::pairs"]
        [::core::mem::offset_of!(AttentionBackwardParams, pairs) - 232usize];
};
#[doc = " `attention_decode`: `rope`, `kv_append` and `self_attention` of a step in which every sequence\n  has one row: row s, the last of the kv_len\\[s\\] tokens of its page table, turns its query and key,\n  puts key and value into its slot, and attends to all of them. No turning if `rotary` is 0.\n\n  Source    arXiv:1706.03762 eq. 1; arXiv:2104.09864 eq. 34; keys in parts, merged as in\n            arXiv:2307.08691 sec. 3.1\n  Entries   attention_decode_{f32,bf16,f16}\n  Limits    as of the three; kv_len\\[s\\] >= 1; qkv is spent: its contents afterwards are unspecified\n  Numerics  turned queries and keys are rounded to T; maxima and sums in f32, merged in a fixed\n            order: the same bits whatever else is in the batch"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AttentionDecodeParams {
    #[doc = "(rows, heads*head_dim) T, dense"]
    pub o: *mut ::core::ffi::c_void,
    #[doc = "(rows, 3*heads*head_dim) T, stride row_stride"]
    pub qkv: *mut ::core::ffi::c_void,
    #[doc = "first page of this layer, layout as in `kv_append`"]
    pub pages: *mut ::core::ffi::c_void,
    #[doc = "the stream's, for what parts of the keys leave; null on the host"]
    pub workspace: *mut ::core::ffi::c_void,
    #[doc = "(rows, table_stride) page numbers"]
    pub tables: *const i32,
    #[doc = "(rows)"]
    pub kv_len: *const i32,
    #[doc = "(heads) ALiBi slopes, or null"]
    pub slopes: *const f32,
    pub rows: i64,
    pub table_stride: i64,
    #[doc = "elements"]
    pub row_stride: i64,
    #[doc = "elements between pages of this layer"]
    pub page_stride: i64,
    pub heads: i32,
    pub head_dim: i32,
    pub page_tokens: i32,
    #[doc = "features that turn, even; 0 for none"]
    pub rotary: i32,
    pub base: f32,
    pub scale: f32,
    #[doc = "of all rows; for `cost` only"]
    pub keys: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionDecodeParams"][::core::mem::size_of::<AttentionDecodeParams>() - 120usize];
    ["Alignment of AttentionDecodeParams"]
        [::core::mem::align_of::<AttentionDecodeParams>() - 8usize];
    ["Offset of field: AttentionDecodeParams::o"]
        [::core::mem::offset_of!(AttentionDecodeParams, o) - 0usize];
    ["Offset of field: AttentionDecodeParams::qkv"]
        [::core::mem::offset_of!(AttentionDecodeParams, qkv) - 8usize];
    ["Offset of field: AttentionDecodeParams::pages"]
        [::core::mem::offset_of!(AttentionDecodeParams, pages) - 16usize];
    ["Offset of field: AttentionDecodeParams::workspace"]
        [::core::mem::offset_of!(AttentionDecodeParams, workspace) - 24usize];
    ["Offset of field: AttentionDecodeParams::tables"]
        [::core::mem::offset_of!(AttentionDecodeParams, tables) - 32usize];
    ["Offset of field: AttentionDecodeParams::kv_len"]
        [::core::mem::offset_of!(AttentionDecodeParams, kv_len) - 40usize];
    ["Offset of field: AttentionDecodeParams::slopes"]
        [::core::mem::offset_of!(AttentionDecodeParams, slopes) - 48usize];
    ["Offset of field: AttentionDecodeParams::rows"]
        [::core::mem::offset_of!(AttentionDecodeParams, rows) - 56usize];
    ["Offset of field: AttentionDecodeParams::table_stride"]
        [::core::mem::offset_of!(AttentionDecodeParams, table_stride) - 64usize];
    ["Offset of field: AttentionDecodeParams::row_stride"]
        [::core::mem::offset_of!(AttentionDecodeParams, row_stride) - 72usize];
    ["Offset of field: AttentionDecodeParams::page_stride"]
        [::core::mem::offset_of!(AttentionDecodeParams, page_stride) - 80usize];
    ["Offset of field: AttentionDecodeParams::heads"]
        [::core::mem::offset_of!(AttentionDecodeParams, heads) - 88usize];
    ["Offset of field: AttentionDecodeParams::head_dim"]
        [::core::mem::offset_of!(AttentionDecodeParams, head_dim) - 92usize];
    ["Offset of field: AttentionDecodeParams::page_tokens"]
        [::core::mem::offset_of!(AttentionDecodeParams, page_tokens) - 96usize];
    ["Offset of field: AttentionDecodeParams::rotary"]
        [::core::mem::offset_of!(AttentionDecodeParams, rotary) - 100usize];
    ["Offset of field: AttentionDecodeParams::base"]
        [::core::mem::offset_of!(AttentionDecodeParams, base) - 104usize];
    ["Offset of field: AttentionDecodeParams::scale"]
        [::core::mem::offset_of!(AttentionDecodeParams, scale) - 108usize];
    ["Offset of field: AttentionDecodeParams::keys"]
        [::core::mem::offset_of!(AttentionDecodeParams, keys) - 112usize];
};
#[doc = " `checksum`: y\\[i\\] = xor of the 32-bit words of part i of x, of `parts` equal parts.\n  It reads and does nothing else: its rate is what memory gives at most, measured.\n\n  Source    none; `medflamingo profile` and `bench/kernels.rs` compare other kernels with it\n  Entries   checksum_{f32,bf16,f16}\n  Limits    x begins at a multiple of 16 bytes\n  Numerics  exact; the storage type does not matter"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ChecksumParams {
    #[doc = "(parts) i32"]
    pub y: *mut ::core::ffi::c_void,
    #[doc = "16*packs bytes"]
    pub x: *const ::core::ffi::c_void,
    #[doc = "of 16 bytes"]
    pub packs: i64,
    #[doc = "of ceil(packs/parts) packs; the last ones have fewer"]
    pub parts: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ChecksumParams"][::core::mem::size_of::<ChecksumParams>() - 32usize];
    ["Alignment of ChecksumParams"][::core::mem::align_of::<ChecksumParams>() - 8usize];
    ["Offset of field: ChecksumParams::y"][::core::mem::offset_of!(ChecksumParams, y) - 0usize];
    ["Offset of field: ChecksumParams::x"][::core::mem::offset_of!(ChecksumParams, x) - 8usize];
    ["Offset of field: ChecksumParams::packs"]
        [::core::mem::offset_of!(ChecksumParams, packs) - 16usize];
    ["Offset of field: ChecksumParams::parts"]
        [::core::mem::offset_of!(ChecksumParams, parts) - 24usize];
};
#[doc = " `column_sums`: y\\[q, c\\] (+)= sum of x\\[r, c\\] over the rows r of part q,\n  q*part_rows .. (q+1)*part_rows of those that exist: gradients of biases, say.\n\n  Source    the transpose of adding a row to every row\n  Entries   column_sums_{f32,bf16,f16}: T of x\n  Limits    parts*part_rows >= rows\n  Numerics  f32; eight sums of every eighth row, then those in order"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ColumnSumsParams {
    #[doc = "(parts,cols), dense"]
    pub y: *mut f32,
    #[doc = "(rows,cols) T, stride x_stride"]
    pub x: *const ::core::ffi::c_void,
    pub rows: i64,
    pub cols: i64,
    pub parts: i64,
    pub part_rows: i64,
    pub x_stride: i64,
    pub accumulate: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ColumnSumsParams"][::core::mem::size_of::<ColumnSumsParams>() - 64usize];
    ["Alignment of ColumnSumsParams"][::core::mem::align_of::<ColumnSumsParams>() - 8usize];
    ["Offset of field: ColumnSumsParams::y"][::core::mem::offset_of!(ColumnSumsParams, y) - 0usize];
    ["Offset of field: ColumnSumsParams::x"][::core::mem::offset_of!(ColumnSumsParams, x) - 8usize];
    ["Offset of field: ColumnSumsParams::rows"]
        [::core::mem::offset_of!(ColumnSumsParams, rows) - 16usize];
    ["Offset of field: ColumnSumsParams::cols"]
        [::core::mem::offset_of!(ColumnSumsParams, cols) - 24usize];
    ["Offset of field: ColumnSumsParams::parts"]
        [::core::mem::offset_of!(ColumnSumsParams, parts) - 32usize];
    ["Offset of field: ColumnSumsParams::part_rows"]
        [::core::mem::offset_of!(ColumnSumsParams, part_rows) - 40usize];
    ["Offset of field: ColumnSumsParams::x_stride"]
        [::core::mem::offset_of!(ColumnSumsParams, x_stride) - 48usize];
    ["Offset of field: ColumnSumsParams::accumulate"]
        [::core::mem::offset_of!(ColumnSumsParams, accumulate) - 56usize];
    ["Offset of field: ColumnSumsParams::reserved"]
        [::core::mem::offset_of!(ColumnSumsParams, reserved) - 60usize];
};
#[doc = " `cross_entropy`: per row, loss = log(sum of exp(x)) - x\\[label\\] and its gradient\n  dx\\[j\\] = scale (softmax(x)\\[j\\] - \\[j == label\\]). A row whose label is negative has loss 0 and\n  gradient 0. Columns of dx from `cols` on are 0, so that a product over them may be as long as\n  its kernel likes.\n\n  Source    torch.nn.functional.cross_entropy with ignore_index, each row's loss by itself\n  Entries   cross_entropy_{f32,bf16,f16}: T of dx\n  Limits    labels below cols, checked when they are made; cols >= 1, dx_cols >= cols; dx may be x\n            where T is f32 and the strides are equal\n  Numerics  f32, less the row's largest, which may be any finite number; one rounding of dx"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CrossEntropyParams {
    #[doc = "(rows)"]
    pub loss: *mut f32,
    #[doc = "(rows,dx_cols) T, stride dx_stride"]
    pub dx: *mut ::core::ffi::c_void,
    #[doc = "(rows,cols), stride x_stride"]
    pub x: *const f32,
    #[doc = "(rows)"]
    pub labels: *const i32,
    pub rows: i64,
    pub cols: i64,
    pub dx_cols: i64,
    pub dx_stride: i64,
    pub x_stride: i64,
    pub scale: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CrossEntropyParams"][::core::mem::size_of::<CrossEntropyParams>() - 80usize];
    ["Alignment of CrossEntropyParams"][::core::mem::align_of::<CrossEntropyParams>() - 8usize];
    ["Offset of field: CrossEntropyParams::loss"]
        [::core::mem::offset_of!(CrossEntropyParams, loss) - 0usize];
    ["Offset of field: CrossEntropyParams::dx"]
        [::core::mem::offset_of!(CrossEntropyParams, dx) - 8usize];
    ["Offset of field: CrossEntropyParams::x"]
        [::core::mem::offset_of!(CrossEntropyParams, x) - 16usize];
    ["Offset of field: CrossEntropyParams::labels"]
        [::core::mem::offset_of!(CrossEntropyParams, labels) - 24usize];
    ["Offset of field: CrossEntropyParams::rows"]
        [::core::mem::offset_of!(CrossEntropyParams, rows) - 32usize];
    ["Offset of field: CrossEntropyParams::cols"]
        [::core::mem::offset_of!(CrossEntropyParams, cols) - 40usize];
    ["Offset of field: CrossEntropyParams::dx_cols"]
        [::core::mem::offset_of!(CrossEntropyParams, dx_cols) - 48usize];
    ["Offset of field: CrossEntropyParams::dx_stride"]
        [::core::mem::offset_of!(CrossEntropyParams, dx_stride) - 56usize];
    ["Offset of field: CrossEntropyParams::x_stride"]
        [::core::mem::offset_of!(CrossEntropyParams, x_stride) - 64usize];
    ["Offset of field: CrossEntropyParams::scale"]
        [::core::mem::offset_of!(CrossEntropyParams, scale) - 72usize];
    ["Offset of field: CrossEntropyParams::reserved"]
        [::core::mem::offset_of!(CrossEntropyParams, reserved) - 76usize];
};
#[doc = " `embedding`: y\\[r\\] = w\\[ids\\[r\\]\\].\n\n  Source    torch.nn.Embedding\n  Entries   embedding_{f32,bf16,f16}\n  Limits    0 <= ids\\[r\\] < vocabulary, checked when the ids are made"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct EmbeddingParams {
    #[doc = "(rows,cols) T"]
    pub y: *mut ::core::ffi::c_void,
    #[doc = "(rows)"]
    pub ids: *const i32,
    #[doc = "(vocabulary,cols) T"]
    pub w: *const ::core::ffi::c_void,
    pub rows: i64,
    pub cols: i64,
    pub vocabulary: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of EmbeddingParams"][::core::mem::size_of::<EmbeddingParams>() - 48usize];
    ["Alignment of EmbeddingParams"][::core::mem::align_of::<EmbeddingParams>() - 8usize];
    ["Offset of field: EmbeddingParams::y"][::core::mem::offset_of!(EmbeddingParams, y) - 0usize];
    ["Offset of field: EmbeddingParams::ids"]
        [::core::mem::offset_of!(EmbeddingParams, ids) - 8usize];
    ["Offset of field: EmbeddingParams::w"][::core::mem::offset_of!(EmbeddingParams, w) - 16usize];
    ["Offset of field: EmbeddingParams::rows"]
        [::core::mem::offset_of!(EmbeddingParams, rows) - 24usize];
    ["Offset of field: EmbeddingParams::cols"]
        [::core::mem::offset_of!(EmbeddingParams, cols) - 32usize];
    ["Offset of field: EmbeddingParams::vocabulary"]
        [::core::mem::offset_of!(EmbeddingParams, vocabulary) - 40usize];
};
#[doc = " `embedding_backward`: dw\\[rows\\[i\\]\\] += sum of dx\\[order\\[j\\]\\] over begin\\[i\\] <= j < begin\\[i + 1\\]: the\n  gradient of `embedding` by those rows that some token named, tokens of one id together.\n\n  Source    torch.nn.Embedding, differentiated\n  Entries   embedding_backward_{f32,bf16,f16}: T of dx\n  Limits    `rows` differ from each other; all three are checked when they are made\n  Numerics  f32; eight sums of every eighth token of a group, then those in order"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct EmbeddingBackwardParams {
    #[doc = "(_,cols), stride dw_stride; added to"]
    pub dw: *mut f32,
    #[doc = "(_,cols) T, stride dx_stride"]
    pub dx: *const ::core::ffi::c_void,
    #[doc = "(groups) of dw"]
    pub rows: *const i32,
    #[doc = "(groups+1)"]
    pub begin: *const i32,
    #[doc = "(begin\\[groups\\]) rows of dx"]
    pub order: *const i32,
    pub groups: i64,
    pub cols: i64,
    pub dw_stride: i64,
    pub dx_stride: i64,
    #[doc = "begin\\[groups\\]"]
    pub tokens: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of EmbeddingBackwardParams"]
        [::core::mem::size_of::<EmbeddingBackwardParams>() - 80usize];
    ["Alignment of EmbeddingBackwardParams"]
        [::core::mem::align_of::<EmbeddingBackwardParams>() - 8usize];
    ["Offset of field: EmbeddingBackwardParams::dw"]
        [::core::mem::offset_of!(EmbeddingBackwardParams, dw) - 0usize];
    ["Offset of field: EmbeddingBackwardParams::dx"]
        [::core::mem::offset_of!(EmbeddingBackwardParams, dx) - 8usize];
    ["Offset of field: EmbeddingBackwardParams::rows"]
        [::core::mem::offset_of!(EmbeddingBackwardParams, rows) - 16usize];
    ["Offset of field: EmbeddingBackwardParams::begin"]
        [::core::mem::offset_of!(EmbeddingBackwardParams, begin) - 24usize];
    ["Offset of field: EmbeddingBackwardParams::order"]
        [::core::mem::offset_of!(EmbeddingBackwardParams, order) - 32usize];
    ["Offset of field: EmbeddingBackwardParams::groups"]
        [::core::mem::offset_of!(EmbeddingBackwardParams, groups) - 40usize];
    ["Offset of field: EmbeddingBackwardParams::cols"]
        [::core::mem::offset_of!(EmbeddingBackwardParams, cols) - 48usize];
    ["Offset of field: EmbeddingBackwardParams::dw_stride"]
        [::core::mem::offset_of!(EmbeddingBackwardParams, dw_stride) - 56usize];
    ["Offset of field: EmbeddingBackwardParams::dx_stride"]
        [::core::mem::offset_of!(EmbeddingBackwardParams, dx_stride) - 64usize];
    ["Offset of field: EmbeddingBackwardParams::tokens"]
        [::core::mem::offset_of!(EmbeddingBackwardParams, tokens) - 72usize];
};
#[doc = " `gate_backward`: the gradients of x + tanh(gate) h W^T by h and by the gate, where the product's\n  own output was not kept: given d = dy W,\n  parts\\[q\\] = (1 - tanh(gate)^2) * sum of d h over the cells of part q, and then d *= tanh(gate).\n  Part q has the cells q*part_cells .. (q+1)*part_cells of those that exist; `column_sums` adds\n  the parts up.\n\n  Source    arXiv:2204.14198 eq. 2, differentiated: sum of dy (h W^T) = sum of (dy W) h\n  Entries   gate_backward_{f32,bf16,f16}\n  Limits    parts*part_cells >= cells\n  Numerics  f32 sums in a fixed order, of d before it is scaled; d is rounded once"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GateBackwardParams {
    #[doc = "(cells) T, scaled in place"]
    pub d: *mut ::core::ffi::c_void,
    #[doc = "(count)"]
    pub parts: *mut f32,
    #[doc = "(cells) T"]
    pub h: *const ::core::ffi::c_void,
    #[doc = "(1) T"]
    pub gate: *const ::core::ffi::c_void,
    pub cells: i64,
    pub count: i64,
    pub part_cells: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GateBackwardParams"][::core::mem::size_of::<GateBackwardParams>() - 56usize];
    ["Alignment of GateBackwardParams"][::core::mem::align_of::<GateBackwardParams>() - 8usize];
    ["Offset of field: GateBackwardParams::d"]
        [::core::mem::offset_of!(GateBackwardParams, d) - 0usize];
    ["Offset of field: GateBackwardParams::parts"]
        [::core::mem::offset_of!(GateBackwardParams, parts) - 8usize];
    ["Offset of field: GateBackwardParams::h"]
        [::core::mem::offset_of!(GateBackwardParams, h) - 16usize];
    ["Offset of field: GateBackwardParams::gate"]
        [::core::mem::offset_of!(GateBackwardParams, gate) - 24usize];
    ["Offset of field: GateBackwardParams::cells"]
        [::core::mem::offset_of!(GateBackwardParams, cells) - 32usize];
    ["Offset of field: GateBackwardParams::count"]
        [::core::mem::offset_of!(GateBackwardParams, count) - 40usize];
    ["Offset of field: GateBackwardParams::part_cells"]
        [::core::mem::offset_of!(GateBackwardParams, part_cells) - 48usize];
};
#[doc = " `gemm`: C = residual + tanh(gate) * f(norm(A) B^T + bias), with C (m,n), A (m,k), B (n,k).\n\n  Absent parts are null: no bias, no residual, gate factor 1. `activation` is f: 0 identity,\n  1 GELU (erf), 2 QuickGELU x*sigmoid(1.702 x), 3 SwiGLU: B is n/2 rows of gates, then n/2 of\n  values; C (m,n/2) = residual + tanh(gate) * silu(A Bgates^T) (A Bvalues^T), on cards, of 16-bit\n  operands in 16-byte chunks, without bias. `norm` is 0 for A as it is; 1 for the rows that\n  `rmsnorm` makes of A, or 2 for those of `layernorm`: on cards, of at most 2 rows, 16-bit\n  operands in 16-byte chunks. C may be the residual itself (in place): so are gradients of T\n  accumulated in f32.\n\n  Source    arXiv:2204.14198 eq. 2 (tanh gate);\n            open_flamingo/src/helpers.py GatedCrossAttentionBlock; arXiv:2002.05202 eq. 6 (SwiGLU)\n  Entries   gemm_{f32,bf16,f16}; C is T, or f32 when `c_is_f32`\n  Limits    m,n,k >= 0; lda >= k, ldb >= k, ldc >= columns of C\n  Numerics  a norm as its own kernel has it, rounded to T; products of T summed in f32; epilogue\n            in f32; one rounding to C's type"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GemmParams {
    #[doc = "(m,n) T or f32; (m,n/2) of SwiGLU"]
    pub c: *mut ::core::ffi::c_void,
    #[doc = "(m,k) T"]
    pub a: *const ::core::ffi::c_void,
    #[doc = "(n,k) T, the weight"]
    pub b: *const ::core::ffi::c_void,
    #[doc = "(n) T or null"]
    pub bias: *const ::core::ffi::c_void,
    #[doc = "(m,n) of C's type with stride ldc, or null"]
    pub residual: *const ::core::ffi::c_void,
    #[doc = "(1) T or null"]
    pub gate: *const ::core::ffi::c_void,
    #[doc = "the stream's, for sums of parts of k; null on the host"]
    pub workspace: *mut ::core::ffi::c_void,
    pub m: i64,
    pub n: i64,
    pub k: i64,
    #[doc = "row strides, elements"]
    pub lda: i64,
    #[doc = "row strides, elements"]
    pub ldb: i64,
    #[doc = "row strides, elements"]
    pub ldc: i64,
    pub activation: i32,
    pub c_is_f32: i32,
    #[doc = "(k) T, of a norm"]
    pub norm_weight: *const ::core::ffi::c_void,
    #[doc = "(k) T or null, of `layernorm`"]
    pub norm_bias: *const ::core::ffi::c_void,
    pub norm_eps: f32,
    pub norm: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GemmParams"][::core::mem::size_of::<GemmParams>() - 136usize];
    ["Alignment of GemmParams"][::core::mem::align_of::<GemmParams>() - 8usize];
    ["Offset of field: GemmParams::c"][::core::mem::offset_of!(GemmParams, c) - 0usize];
    ["Offset of field: GemmParams::a"][::core::mem::offset_of!(GemmParams, a) - 8usize];
    ["Offset of field: GemmParams::b"][::core::mem::offset_of!(GemmParams, b) - 16usize];
    ["Offset of field: GemmParams::bias"][::core::mem::offset_of!(GemmParams, bias) - 24usize];
    ["Offset of field: GemmParams::residual"]
        [::core::mem::offset_of!(GemmParams, residual) - 32usize];
    ["Offset of field: GemmParams::gate"][::core::mem::offset_of!(GemmParams, gate) - 40usize];
    ["Offset of field: GemmParams::workspace"]
        [::core::mem::offset_of!(GemmParams, workspace) - 48usize];
    ["Offset of field: GemmParams::m"][::core::mem::offset_of!(GemmParams, m) - 56usize];
    ["Offset of field: GemmParams::n"][::core::mem::offset_of!(GemmParams, n) - 64usize];
    ["Offset of field: GemmParams::k"][::core::mem::offset_of!(GemmParams, k) - 72usize];
    ["Offset of field: GemmParams::lda"][::core::mem::offset_of!(GemmParams, lda) - 80usize];
    ["Offset of field: GemmParams::ldb"][::core::mem::offset_of!(GemmParams, ldb) - 88usize];
    ["Offset of field: GemmParams::ldc"][::core::mem::offset_of!(GemmParams, ldc) - 96usize];
    ["Offset of field: GemmParams::activation"]
        [::core::mem::offset_of!(GemmParams, activation) - 104usize];
    ["Offset of field: GemmParams::c_is_f32"]
        [::core::mem::offset_of!(GemmParams, c_is_f32) - 108usize];
    ["Offset of field: GemmParams::norm_weight"]
        [::core::mem::offset_of!(GemmParams, norm_weight) - 112usize];
    ["Offset of field: GemmParams::norm_bias"]
        [::core::mem::offset_of!(GemmParams, norm_bias) - 120usize];
    ["Offset of field: GemmParams::norm_eps"]
        [::core::mem::offset_of!(GemmParams, norm_eps) - 128usize];
    ["Offset of field: GemmParams::norm"][::core::mem::offset_of!(GemmParams, norm) - 132usize];
};
#[doc = " `gemm_quantized`: `gemm` with weights of few bits, B\\[j\\]\\[i\\] = scales\\[j\\]\\[i / group\\] * q\\[j\\]\\[i\\].\n\n  8 bits: q are signed bytes, a group is a whole row. 4 bits: q + 8 are nibbles, a group is 128;\n  eight consecutive weights w0.. are a little-endian 32-bit word whose nibbles, from the lowest,\n  are w0 w2 w4 w6 w1 w3 w5 w7: (word >> 4 i) & 0x000f000f is the pair w\\[2i\\], w\\[2i+1\\].\n\n  Source    arXiv:2208.07339 sec. 2 (a scale per output channel); arXiv:2210.17323 sec. 3\n            (groups); arXiv:2408.11743 (order of the nibbles)\n  Entries   gemm_quantized_{f32,bf16,f16}; C is T, or f32 when `c_is_f32`\n  Limits    as `gemm`; m < 2^16, n < 2^27, k < 2^30, for 4 bits k is a multiple of 128\n  Numerics  q is exact in T; the products of a group are summed in f32, scaled, and summed in f32;\n            the epilogue of `gemm`. Of 4 bits, in bf16 and of at most 8 rows, cards sum those of\n            q + 136 and take 136 times the sum of A off: five of the 24 bits of a sum. Of up to 2\n            rows of 16 bits in 16-byte chunks, where a card has the room, A is rounded to 2^-22 of\n            the largest in an eighth of its row, and the products of a group, or of such an\n            eighth, are exact"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GemmQuantizedParams {
    #[doc = "b: (n,k) signed bytes or (n,k/2) bytes of two; ldb in bytes"]
    pub product: GemmParams,
    #[doc = "(n) or (n,k/128) bf16, whatever T is"]
    pub scales: *const ::core::ffi::c_void,
    #[doc = "8 or 4"]
    pub bits: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GemmQuantizedParams"][::core::mem::size_of::<GemmQuantizedParams>() - 152usize];
    ["Alignment of GemmQuantizedParams"][::core::mem::align_of::<GemmQuantizedParams>() - 8usize];
    ["Offset of field: GemmQuantizedParams::product"]
        [::core::mem::offset_of!(GemmQuantizedParams, product) - 0usize];
    ["Offset of field: GemmQuantizedParams::scales"]
        [::core::mem::offset_of!(GemmQuantizedParams, scales) - 136usize];
    ["Offset of field: GemmQuantizedParams::bits"]
        [::core::mem::offset_of!(GemmQuantizedParams, bits) - 144usize];
};
#[doc = " `kv_append`: copies the key and value parts of \\[q | k | v\\] rows into the pages of a KV pool. If\n  `rotary` is not 0, queries are turned in place and keys on their way, as by `rope`.\n\n  Page layout (2, heads, page_tokens, head_dim) T: keys, then values, each head contiguous.\n  Row r goes to slot `slots\\[r\\]` = page * page_tokens + offset.\n\n  Source    paging after arXiv:2309.06180; arXiv:2104.09864 eq. 34\n  Entries   kv_append_{f32,bf16,f16}\n  Limits    slots are distinct and inside the pool, which has fewer than 2^31; rotary even, at\n            most head_dim and 4096; if it is not 0, k of qkv is unspecified afterwards\n  Numerics  as `rope`; turned queries and keys are rounded to T once"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct KvAppendParams {
    #[doc = "first page of this layer"]
    pub pages: *mut ::core::ffi::c_void,
    #[doc = "(rows, 3*heads*head_dim) T; q is changed in place if it turns"]
    pub qkv: *mut ::core::ffi::c_void,
    #[doc = "(rows)"]
    pub slots: *const i64,
    #[doc = "(rows)"]
    pub positions: *const i32,
    pub rows: i64,
    #[doc = "of qkv, elements"]
    pub row_stride: i64,
    #[doc = "elements between pages of this layer"]
    pub page_stride: i64,
    pub heads: i32,
    pub head_dim: i32,
    pub page_tokens: i32,
    #[doc = "features that turn, even; 0 for none"]
    pub rotary: i32,
    pub base: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of KvAppendParams"][::core::mem::size_of::<KvAppendParams>() - 80usize];
    ["Alignment of KvAppendParams"][::core::mem::align_of::<KvAppendParams>() - 8usize];
    ["Offset of field: KvAppendParams::pages"]
        [::core::mem::offset_of!(KvAppendParams, pages) - 0usize];
    ["Offset of field: KvAppendParams::qkv"][::core::mem::offset_of!(KvAppendParams, qkv) - 8usize];
    ["Offset of field: KvAppendParams::slots"]
        [::core::mem::offset_of!(KvAppendParams, slots) - 16usize];
    ["Offset of field: KvAppendParams::positions"]
        [::core::mem::offset_of!(KvAppendParams, positions) - 24usize];
    ["Offset of field: KvAppendParams::rows"]
        [::core::mem::offset_of!(KvAppendParams, rows) - 32usize];
    ["Offset of field: KvAppendParams::row_stride"]
        [::core::mem::offset_of!(KvAppendParams, row_stride) - 40usize];
    ["Offset of field: KvAppendParams::page_stride"]
        [::core::mem::offset_of!(KvAppendParams, page_stride) - 48usize];
    ["Offset of field: KvAppendParams::heads"]
        [::core::mem::offset_of!(KvAppendParams, heads) - 56usize];
    ["Offset of field: KvAppendParams::head_dim"]
        [::core::mem::offset_of!(KvAppendParams, head_dim) - 60usize];
    ["Offset of field: KvAppendParams::page_tokens"]
        [::core::mem::offset_of!(KvAppendParams, page_tokens) - 64usize];
    ["Offset of field: KvAppendParams::rotary"]
        [::core::mem::offset_of!(KvAppendParams, rotary) - 68usize];
    ["Offset of field: KvAppendParams::base"]
        [::core::mem::offset_of!(KvAppendParams, base) - 72usize];
    ["Offset of field: KvAppendParams::reserved"]
        [::core::mem::offset_of!(KvAppendParams, reserved) - 76usize];
};
#[doc = " `layernorm`: y = (x - mean(x)) / sqrt(var(x) + eps) * w + b, per row.\n\n  Source    arXiv:1607.06450 eq. 4; torch.nn.LayerNorm (biased variance)\n  Entries   layernorm_{f32,bf16,f16}\n  Limits    cols >= 1; b may be null (MPT has weights only)\n  Numerics  mean; then mean and variance of the centred values, all in f32"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LayernormParams {
    #[doc = "(rows,cols) T, stride y_stride; may be x"]
    pub y: *mut ::core::ffi::c_void,
    #[doc = "(rows,cols) T, stride x_stride"]
    pub x: *const ::core::ffi::c_void,
    #[doc = "(cols) T"]
    pub w: *const ::core::ffi::c_void,
    #[doc = "(cols) T or null"]
    pub b: *const ::core::ffi::c_void,
    pub rows: i64,
    pub cols: i64,
    pub y_stride: i64,
    pub x_stride: i64,
    pub eps: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LayernormParams"][::core::mem::size_of::<LayernormParams>() - 72usize];
    ["Alignment of LayernormParams"][::core::mem::align_of::<LayernormParams>() - 8usize];
    ["Offset of field: LayernormParams::y"][::core::mem::offset_of!(LayernormParams, y) - 0usize];
    ["Offset of field: LayernormParams::x"][::core::mem::offset_of!(LayernormParams, x) - 8usize];
    ["Offset of field: LayernormParams::w"][::core::mem::offset_of!(LayernormParams, w) - 16usize];
    ["Offset of field: LayernormParams::b"][::core::mem::offset_of!(LayernormParams, b) - 24usize];
    ["Offset of field: LayernormParams::rows"]
        [::core::mem::offset_of!(LayernormParams, rows) - 32usize];
    ["Offset of field: LayernormParams::cols"]
        [::core::mem::offset_of!(LayernormParams, cols) - 40usize];
    ["Offset of field: LayernormParams::y_stride"]
        [::core::mem::offset_of!(LayernormParams, y_stride) - 48usize];
    ["Offset of field: LayernormParams::x_stride"]
        [::core::mem::offset_of!(LayernormParams, x_stride) - 56usize];
    ["Offset of field: LayernormParams::eps"]
        [::core::mem::offset_of!(LayernormParams, eps) - 64usize];
    ["Offset of field: LayernormParams::reserved"]
        [::core::mem::offset_of!(LayernormParams, reserved) - 68usize];
};
#[doc = " `norm_backward`: the gradients of y = h w + b per row, where h = (x - mean(x)) r and\n  r = 1 / sqrt(var(x) + eps) in a layernorm; in an rmsnorm h = x r and\n  r = 1 / sqrt(mean(x^2) + eps).\n\n  g = dy w;  dx (+)= r (g - mean(g) - h mean(g h)), an rmsnorm without mean(g);\n  dw\\[q\\] = sum of dy h and db\\[q\\] = sum of dy over the rows of part q,\n  q*part_rows .. (q+1)*part_rows of those that exist. `column_sums` adds the parts up.\n\n  Source    arXiv:1607.06450 eq. 4 and arXiv:1910.07467 eq. 4, differentiated\n  Entries   norm_backward_{f32,bf16,f16}\n  Limits    cols >= 1, parts*part_rows >= rows; dw and db null if not wanted, db null for an\n            rmsnorm\n  Numerics  f32; sums of a part in the order of its rows, one rounding of dx"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct NormBackwardParams {
    #[doc = "(rows,cols) T, stride dx_stride; added to if accumulate"]
    pub dx: *mut ::core::ffi::c_void,
    #[doc = "(parts,cols), or null"]
    pub dw: *mut f32,
    #[doc = "(parts,cols), or null"]
    pub db: *mut f32,
    #[doc = "(rows,cols) T, stride dy_stride"]
    pub dy: *const ::core::ffi::c_void,
    #[doc = "(rows,cols) T, stride x_stride"]
    pub x: *const ::core::ffi::c_void,
    #[doc = "(cols) T"]
    pub w: *const ::core::ffi::c_void,
    pub rows: i64,
    pub cols: i64,
    pub parts: i64,
    pub part_rows: i64,
    pub dx_stride: i64,
    pub dy_stride: i64,
    pub x_stride: i64,
    pub eps: f32,
    #[doc = "1 layernorm, 0 rmsnorm"]
    pub is_centred: i32,
    pub accumulate: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NormBackwardParams"][::core::mem::size_of::<NormBackwardParams>() - 120usize];
    ["Alignment of NormBackwardParams"][::core::mem::align_of::<NormBackwardParams>() - 8usize];
    ["Offset of field: NormBackwardParams::dx"]
        [::core::mem::offset_of!(NormBackwardParams, dx) - 0usize];
    ["Offset of field: NormBackwardParams::dw"]
        [::core::mem::offset_of!(NormBackwardParams, dw) - 8usize];
    ["Offset of field: NormBackwardParams::db"]
        [::core::mem::offset_of!(NormBackwardParams, db) - 16usize];
    ["Offset of field: NormBackwardParams::dy"]
        [::core::mem::offset_of!(NormBackwardParams, dy) - 24usize];
    ["Offset of field: NormBackwardParams::x"]
        [::core::mem::offset_of!(NormBackwardParams, x) - 32usize];
    ["Offset of field: NormBackwardParams::w"]
        [::core::mem::offset_of!(NormBackwardParams, w) - 40usize];
    ["Offset of field: NormBackwardParams::rows"]
        [::core::mem::offset_of!(NormBackwardParams, rows) - 48usize];
    ["Offset of field: NormBackwardParams::cols"]
        [::core::mem::offset_of!(NormBackwardParams, cols) - 56usize];
    ["Offset of field: NormBackwardParams::parts"]
        [::core::mem::offset_of!(NormBackwardParams, parts) - 64usize];
    ["Offset of field: NormBackwardParams::part_rows"]
        [::core::mem::offset_of!(NormBackwardParams, part_rows) - 72usize];
    ["Offset of field: NormBackwardParams::dx_stride"]
        [::core::mem::offset_of!(NormBackwardParams, dx_stride) - 80usize];
    ["Offset of field: NormBackwardParams::dy_stride"]
        [::core::mem::offset_of!(NormBackwardParams, dy_stride) - 88usize];
    ["Offset of field: NormBackwardParams::x_stride"]
        [::core::mem::offset_of!(NormBackwardParams, x_stride) - 96usize];
    ["Offset of field: NormBackwardParams::eps"]
        [::core::mem::offset_of!(NormBackwardParams, eps) - 104usize];
    ["Offset of field: NormBackwardParams::is_centred"]
        [::core::mem::offset_of!(NormBackwardParams, is_centred) - 108usize];
    ["Offset of field: NormBackwardParams::accumulate"]
        [::core::mem::offset_of!(NormBackwardParams, accumulate) - 112usize];
    ["Offset of field: NormBackwardParams::reserved"]
        [::core::mem::offset_of!(NormBackwardParams, reserved) - 116usize];
};
#[doc = " `patchify`: cuts images into patches, one row each, in the order (channel, y, x) of a\n  convolution weight, so that the patch embedding is a `gemm`. Patches are row-major over the\n  image. A byte of channel c becomes levels\\[c, byte\\]. Columns beyond a patch are zeros: rows of\n  588, which patches of 14 are, do not begin at multiples of 16 bytes.\n\n  Source    arXiv:2010.11929 eq. 1; open_clip VisionTransformer.conv1\n  Entries   patchify_{f32,bf16,f16}\n  Limits    side divisible by patch; fewer than 2^31 pixels, and cells of y"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct PatchifyParams {
    #[doc = "(images * (side/patch)^2, cols) T"]
    pub y: *mut ::core::ffi::c_void,
    #[doc = "(images, 3, side, side)"]
    pub pixels: *const u8,
    #[doc = "(3, 256)"]
    pub levels: *const f32,
    #[doc = "cols >= 3*patch*patch"]
    pub images: i64,
    #[doc = "cols >= 3*patch*patch"]
    pub cols: i64,
    pub side: i32,
    pub patch: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PatchifyParams"][::core::mem::size_of::<PatchifyParams>() - 48usize];
    ["Alignment of PatchifyParams"][::core::mem::align_of::<PatchifyParams>() - 8usize];
    ["Offset of field: PatchifyParams::y"][::core::mem::offset_of!(PatchifyParams, y) - 0usize];
    ["Offset of field: PatchifyParams::pixels"]
        [::core::mem::offset_of!(PatchifyParams, pixels) - 8usize];
    ["Offset of field: PatchifyParams::levels"]
        [::core::mem::offset_of!(PatchifyParams, levels) - 16usize];
    ["Offset of field: PatchifyParams::images"]
        [::core::mem::offset_of!(PatchifyParams, images) - 24usize];
    ["Offset of field: PatchifyParams::cols"]
        [::core::mem::offset_of!(PatchifyParams, cols) - 32usize];
    ["Offset of field: PatchifyParams::side"]
        [::core::mem::offset_of!(PatchifyParams, side) - 40usize];
    ["Offset of field: PatchifyParams::patch"]
        [::core::mem::offset_of!(PatchifyParams, patch) - 44usize];
};
#[doc = " `vision_tokens`: prepends the class embedding and adds positions:\n  y\\[i,0\\] = cls + pos\\[0\\]; y\\[i,1+p\\] = x\\[i,p\\] + pos\\[1+p\\].\n\n  Source    arXiv:2010.11929 eq. 1\n  Entries   vision_tokens_{f32,bf16,f16}\n  Limits    fewer than 2^31 cells of y"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct VisionTokensParams {
    #[doc = "(images, 1+patches, cols) T"]
    pub y: *mut ::core::ffi::c_void,
    #[doc = "(images, patches, cols) T"]
    pub x: *const ::core::ffi::c_void,
    #[doc = "(cols) T"]
    pub cls: *const ::core::ffi::c_void,
    #[doc = "(1+patches, cols) T"]
    pub pos: *const ::core::ffi::c_void,
    pub images: i64,
    pub patches: i64,
    pub cols: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of VisionTokensParams"][::core::mem::size_of::<VisionTokensParams>() - 56usize];
    ["Alignment of VisionTokensParams"][::core::mem::align_of::<VisionTokensParams>() - 8usize];
    ["Offset of field: VisionTokensParams::y"]
        [::core::mem::offset_of!(VisionTokensParams, y) - 0usize];
    ["Offset of field: VisionTokensParams::x"]
        [::core::mem::offset_of!(VisionTokensParams, x) - 8usize];
    ["Offset of field: VisionTokensParams::cls"]
        [::core::mem::offset_of!(VisionTokensParams, cls) - 16usize];
    ["Offset of field: VisionTokensParams::pos"]
        [::core::mem::offset_of!(VisionTokensParams, pos) - 24usize];
    ["Offset of field: VisionTokensParams::images"]
        [::core::mem::offset_of!(VisionTokensParams, images) - 32usize];
    ["Offset of field: VisionTokensParams::patches"]
        [::core::mem::offset_of!(VisionTokensParams, patches) - 40usize];
    ["Offset of field: VisionTokensParams::cols"]
        [::core::mem::offset_of!(VisionTokensParams, cols) - 48usize];
};
#[doc = " `vision_tokens_backward`: the gradients of `vision_tokens`:\n  dx\\[i,p\\] = dy\\[i,1+p\\];  dpos\\[t\\] (+)= sum of dy\\[i,t\\] over i;  dcls (+)= sum of dy\\[i,0\\] over i.\n\n  Source    arXiv:2010.11929 eq. 1, differentiated\n  Entries   vision_tokens_backward_{f32,bf16,f16}\n  Limits    dx null if not wanted\n  Numerics  f32 sums in the order of the images; dx a copy"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct VisionTokensBackwardParams {
    #[doc = "(images, patches, cols) T, or null"]
    pub dx: *mut ::core::ffi::c_void,
    #[doc = "(cols)"]
    pub dcls: *mut f32,
    #[doc = "(1+patches, cols)"]
    pub dpos: *mut f32,
    #[doc = "(images, 1+patches, cols) T"]
    pub dy: *const ::core::ffi::c_void,
    pub images: i64,
    pub patches: i64,
    pub cols: i64,
    pub accumulate: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of VisionTokensBackwardParams"]
        [::core::mem::size_of::<VisionTokensBackwardParams>() - 64usize];
    ["Alignment of VisionTokensBackwardParams"]
        [::core::mem::align_of::<VisionTokensBackwardParams>() - 8usize];
    ["Offset of field: VisionTokensBackwardParams::dx"]
        [::core::mem::offset_of!(VisionTokensBackwardParams, dx) - 0usize];
    ["Offset of field: VisionTokensBackwardParams::dcls"]
        [::core::mem::offset_of!(VisionTokensBackwardParams, dcls) - 8usize];
    ["Offset of field: VisionTokensBackwardParams::dpos"]
        [::core::mem::offset_of!(VisionTokensBackwardParams, dpos) - 16usize];
    ["Offset of field: VisionTokensBackwardParams::dy"]
        [::core::mem::offset_of!(VisionTokensBackwardParams, dy) - 24usize];
    ["Offset of field: VisionTokensBackwardParams::images"]
        [::core::mem::offset_of!(VisionTokensBackwardParams, images) - 32usize];
    ["Offset of field: VisionTokensBackwardParams::patches"]
        [::core::mem::offset_of!(VisionTokensBackwardParams, patches) - 40usize];
    ["Offset of field: VisionTokensBackwardParams::cols"]
        [::core::mem::offset_of!(VisionTokensBackwardParams, cols) - 48usize];
    ["Offset of field: VisionTokensBackwardParams::accumulate"]
        [::core::mem::offset_of!(VisionTokensBackwardParams, accumulate) - 56usize];
    ["Offset of field: VisionTokensBackwardParams::reserved"]
        [::core::mem::offset_of!(VisionTokensBackwardParams, reserved) - 60usize];
};
#[doc = " `quantize`: weights to the codes and scales that `gemm_quantized` reads.\n\n  Each weight takes the code nearest to it under the scale as it is stored. 8 bits: a row's\n  largest weight is 127 scales. 4 bits: a group's largest weight is code -8, whatever its sign,\n  by a scale of the opposite one; the first of several that are as large decides the sign.\n  losses\\[i\\] = \\[sum of (w - code scale)^2, sum of w^2\\] over the weights of scale i.\n\n  Source    arXiv:2208.07339 sec. 2; arXiv:2210.17323 sec. 3\n  Entries   quantize_{f32,bf16,f16}\n  Limits    cols is a multiple of 16 (8 bits) or 128 (4 bits); codes and w 16-byte aligned\n  Numerics  f32; a scale is rounded to bf16, then w * (1 / scale) to the nearest integer, ties to\n            even. A NaN counts for no scale, and its code is 0 (8 bits) or -8 (4 bits). Codes and\n            scales are the same bits everywhere, losses are sums in an order of each device's"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct QuantizeParams {
    #[doc = "(rows,cols) signed bytes or (rows,cols/2) bytes of two"]
    pub codes: *mut ::core::ffi::c_void,
    #[doc = "(rows) or (rows,cols/128) bf16"]
    pub scales: *mut ::core::ffi::c_void,
    #[doc = "(rows,2) or (rows,cols/128,2), or null"]
    pub losses: *mut f32,
    #[doc = "(rows,cols) T"]
    pub w: *const ::core::ffi::c_void,
    pub rows: i64,
    pub cols: i64,
    #[doc = "8 or 4"]
    pub bits: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of QuantizeParams"][::core::mem::size_of::<QuantizeParams>() - 56usize];
    ["Alignment of QuantizeParams"][::core::mem::align_of::<QuantizeParams>() - 8usize];
    ["Offset of field: QuantizeParams::codes"]
        [::core::mem::offset_of!(QuantizeParams, codes) - 0usize];
    ["Offset of field: QuantizeParams::scales"]
        [::core::mem::offset_of!(QuantizeParams, scales) - 8usize];
    ["Offset of field: QuantizeParams::losses"]
        [::core::mem::offset_of!(QuantizeParams, losses) - 16usize];
    ["Offset of field: QuantizeParams::w"][::core::mem::offset_of!(QuantizeParams, w) - 24usize];
    ["Offset of field: QuantizeParams::rows"]
        [::core::mem::offset_of!(QuantizeParams, rows) - 32usize];
    ["Offset of field: QuantizeParams::cols"]
        [::core::mem::offset_of!(QuantizeParams, cols) - 40usize];
    ["Offset of field: QuantizeParams::bits"]
        [::core::mem::offset_of!(QuantizeParams, bits) - 48usize];
};
#[doc = " `dequantize`: w = code * scale, of what `quantize` has made.\n\n  Source    as `quantize`\n  Entries   dequantize_{f32,bf16,f16}\n  Limits    as `quantize`; w 16-byte aligned\n  Numerics  f32, one rounding"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct DequantizeParams {
    #[doc = "(rows,cols) T"]
    pub w: *mut ::core::ffi::c_void,
    #[doc = "(rows,cols) signed bytes or (rows,cols/2) bytes of two"]
    pub codes: *const ::core::ffi::c_void,
    #[doc = "(rows) or (rows,cols/128) bf16"]
    pub scales: *const ::core::ffi::c_void,
    pub rows: i64,
    pub cols: i64,
    #[doc = "8 or 4"]
    pub bits: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of DequantizeParams"][::core::mem::size_of::<DequantizeParams>() - 48usize];
    ["Alignment of DequantizeParams"][::core::mem::align_of::<DequantizeParams>() - 8usize];
    ["Offset of field: DequantizeParams::w"][::core::mem::offset_of!(DequantizeParams, w) - 0usize];
    ["Offset of field: DequantizeParams::codes"]
        [::core::mem::offset_of!(DequantizeParams, codes) - 8usize];
    ["Offset of field: DequantizeParams::scales"]
        [::core::mem::offset_of!(DequantizeParams, scales) - 16usize];
    ["Offset of field: DequantizeParams::rows"]
        [::core::mem::offset_of!(DequantizeParams, rows) - 24usize];
    ["Offset of field: DequantizeParams::cols"]
        [::core::mem::offset_of!(DequantizeParams, cols) - 32usize];
    ["Offset of field: DequantizeParams::bits"]
        [::core::mem::offset_of!(DequantizeParams, bits) - 40usize];
};
#[doc = " `rmsnorm`: y = x / sqrt(mean(x^2) + eps) * w, per row.\n\n  Source    arXiv:1910.07467 eq. 4; transformers LlamaRMSNorm\n  Entries   rmsnorm_{f32,bf16,f16}\n  Limits    cols >= 1\n  Numerics  mean square in f32; x/rms is rounded to T before the weight, as LlamaRMSNorm does"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RmsnormParams {
    #[doc = "(rows,cols) T; may be x"]
    pub y: *mut ::core::ffi::c_void,
    #[doc = "(rows,cols) T"]
    pub x: *const ::core::ffi::c_void,
    #[doc = "(cols) T"]
    pub w: *const ::core::ffi::c_void,
    pub rows: i64,
    pub cols: i64,
    pub eps: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RmsnormParams"][::core::mem::size_of::<RmsnormParams>() - 48usize];
    ["Alignment of RmsnormParams"][::core::mem::align_of::<RmsnormParams>() - 8usize];
    ["Offset of field: RmsnormParams::y"][::core::mem::offset_of!(RmsnormParams, y) - 0usize];
    ["Offset of field: RmsnormParams::x"][::core::mem::offset_of!(RmsnormParams, x) - 8usize];
    ["Offset of field: RmsnormParams::w"][::core::mem::offset_of!(RmsnormParams, w) - 16usize];
    ["Offset of field: RmsnormParams::rows"]
        [::core::mem::offset_of!(RmsnormParams, rows) - 24usize];
    ["Offset of field: RmsnormParams::cols"]
        [::core::mem::offset_of!(RmsnormParams, cols) - 32usize];
    ["Offset of field: RmsnormParams::eps"][::core::mem::offset_of!(RmsnormParams, eps) - 40usize];
    ["Offset of field: RmsnormParams::reserved"]
        [::core::mem::offset_of!(RmsnormParams, reserved) - 44usize];
};
#[doc = " `rope`: rotates the first `rotary` features of every query and key head by\n  position * base^(-2i/rotary). Pairs are (i, i + rotary/2), the rotate-half form.\n  By the opposite angle if is_inverse, which is what the gradient does.\n\n  Source    arXiv:2104.09864 eq. 34; transformers apply_rotary_pos_emb (LLaMA, GPT-NeoX)\n  Entries   rope_{f32,bf16,f16}\n  Limits    rotary even, 0 < rotary <= head_dim; in place on \\[q | k | v\\] rows\n  Numerics  angle, sine and cosine in f32"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RopeParams {
    #[doc = "(rows, 3*heads*head_dim) T, changed in place: q and k parts"]
    pub qkv: *mut ::core::ffi::c_void,
    #[doc = "(rows)"]
    pub positions: *const i32,
    pub rows: i64,
    #[doc = "elements"]
    pub row_stride: i64,
    pub heads: i32,
    pub head_dim: i32,
    pub rotary: i32,
    pub base: f32,
    pub is_inverse: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RopeParams"][::core::mem::size_of::<RopeParams>() - 56usize];
    ["Alignment of RopeParams"][::core::mem::align_of::<RopeParams>() - 8usize];
    ["Offset of field: RopeParams::qkv"][::core::mem::offset_of!(RopeParams, qkv) - 0usize];
    ["Offset of field: RopeParams::positions"]
        [::core::mem::offset_of!(RopeParams, positions) - 8usize];
    ["Offset of field: RopeParams::rows"][::core::mem::offset_of!(RopeParams, rows) - 16usize];
    ["Offset of field: RopeParams::row_stride"]
        [::core::mem::offset_of!(RopeParams, row_stride) - 24usize];
    ["Offset of field: RopeParams::heads"][::core::mem::offset_of!(RopeParams, heads) - 32usize];
    ["Offset of field: RopeParams::head_dim"]
        [::core::mem::offset_of!(RopeParams, head_dim) - 36usize];
    ["Offset of field: RopeParams::rotary"][::core::mem::offset_of!(RopeParams, rotary) - 40usize];
    ["Offset of field: RopeParams::base"][::core::mem::offset_of!(RopeParams, base) - 44usize];
    ["Offset of field: RopeParams::is_inverse"]
        [::core::mem::offset_of!(RopeParams, is_inverse) - 48usize];
    ["Offset of field: RopeParams::reserved"]
        [::core::mem::offset_of!(RopeParams, reserved) - 52usize];
};
#[doc = " How one token is chosen. Fractions are 64 bits after the point.\n\n  Of `edits`, penalised_begin .. penalised_end are tokens whose score is divided by `penalty`, or\n  multiplied if it is below 0; penalised_end .. banned_end are tokens that are not chosen."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SamplingDraw {
    #[doc = "in 0..1: where in the distribution the token is taken"]
    pub uniform: u64,
    #[doc = "share of the mass that is kept; all bits: everything"]
    pub top_p: u64,
    #[doc = "least weight that is kept, in units of 2^-40; 0: everything"]
    pub min_p: u64,
    #[doc = "0: the best token is taken"]
    pub temperature: f32,
    pub penalty: f32,
    #[doc = "tokens kept; 0: all"]
    pub top_k: i32,
    #[doc = "of the logits"]
    pub row: i32,
    pub penalised_begin: i32,
    pub penalised_end: i32,
    pub banned_end: i32,
    #[doc = "to report, at most 20"]
    pub alternatives: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SamplingDraw"][::core::mem::size_of::<SamplingDraw>() - 56usize];
    ["Alignment of SamplingDraw"][::core::mem::align_of::<SamplingDraw>() - 8usize];
    ["Offset of field: SamplingDraw::uniform"]
        [::core::mem::offset_of!(SamplingDraw, uniform) - 0usize];
    ["Offset of field: SamplingDraw::top_p"][::core::mem::offset_of!(SamplingDraw, top_p) - 8usize];
    ["Offset of field: SamplingDraw::min_p"]
        [::core::mem::offset_of!(SamplingDraw, min_p) - 16usize];
    ["Offset of field: SamplingDraw::temperature"]
        [::core::mem::offset_of!(SamplingDraw, temperature) - 24usize];
    ["Offset of field: SamplingDraw::penalty"]
        [::core::mem::offset_of!(SamplingDraw, penalty) - 28usize];
    ["Offset of field: SamplingDraw::top_k"]
        [::core::mem::offset_of!(SamplingDraw, top_k) - 32usize];
    ["Offset of field: SamplingDraw::row"][::core::mem::offset_of!(SamplingDraw, row) - 36usize];
    ["Offset of field: SamplingDraw::penalised_begin"]
        [::core::mem::offset_of!(SamplingDraw, penalised_begin) - 40usize];
    ["Offset of field: SamplingDraw::penalised_end"]
        [::core::mem::offset_of!(SamplingDraw, penalised_end) - 44usize];
    ["Offset of field: SamplingDraw::banned_end"]
        [::core::mem::offset_of!(SamplingDraw, banned_end) - 48usize];
    ["Offset of field: SamplingDraw::alternatives"]
        [::core::mem::offset_of!(SamplingDraw, alternatives) - 52usize];
};
#[doc = " What was chosen, and what the model itself thought of it:\n  ln p(i) = logit(i) - maximum - ln(sum 2^-40), before edits, temperature and truncation."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SamplingChoice {
    #[doc = "of floor(2^40 exp(x - maximum))"]
    pub sum: u64,
    #[doc = "of the row"]
    pub maximum: f32,
    #[doc = "of `id`, or what is wrong with it"]
    pub logit: f32,
    #[doc = "the token, or the first that is at fault"]
    pub id: i32,
    #[doc = "0; else NaN, inf or nothing but -inf: 1 in the row, 2 once edited"]
    pub fault: i32,
    pub top_logit: [f32; 20usize],
    #[doc = "the best of the row, best first, of equals the lower first"]
    pub top_id: [i32; 20usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SamplingChoice"][::core::mem::size_of::<SamplingChoice>() - 184usize];
    ["Alignment of SamplingChoice"][::core::mem::align_of::<SamplingChoice>() - 8usize];
    ["Offset of field: SamplingChoice::sum"][::core::mem::offset_of!(SamplingChoice, sum) - 0usize];
    ["Offset of field: SamplingChoice::maximum"]
        [::core::mem::offset_of!(SamplingChoice, maximum) - 8usize];
    ["Offset of field: SamplingChoice::logit"]
        [::core::mem::offset_of!(SamplingChoice, logit) - 12usize];
    ["Offset of field: SamplingChoice::id"][::core::mem::offset_of!(SamplingChoice, id) - 16usize];
    ["Offset of field: SamplingChoice::fault"]
        [::core::mem::offset_of!(SamplingChoice, fault) - 20usize];
    ["Offset of field: SamplingChoice::top_logit"]
        [::core::mem::offset_of!(SamplingChoice, top_logit) - 24usize];
    ["Offset of field: SamplingChoice::top_id"]
        [::core::mem::offset_of!(SamplingChoice, top_id) - 104usize];
};
#[doc = " `sampling`: the next token of a sequence: the best, or one drawn from the likelier part.\n\n  Scores s are the row with its edits. Tokens are ordered by |y|, y = (s - max s) / temperature,\n  then by id; their weights are w = floor(2^40 exp(y)), whole numbers, so that sums are exact in\n  any order. Kept are: the `top_k` first and what ties with the last of them; of these the fewest\n  first whose weight reaches top_p of the whole; of these those with w >= min_p. Chosen is the\n  first token up to which the kept weight is more than `uniform` of the whole.\n\n  Source    transformers 4.28 - 4.33 LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper\n  Entries   sampling_{f32,bf16,f16}\n  Limits    vocabulary in 1 .. 2^18; ids of edits inside it\n  Numerics  f32 as written, nothing fused: the same bits on every device"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SamplingParams {
    #[doc = "(draws): the tokens alone, where the next step reads them"]
    pub ids: *mut i32,
    #[doc = "(draws)"]
    pub choices: *mut SamplingChoice,
    #[doc = "(rows, vocabulary) T"]
    pub logits: *const ::core::ffi::c_void,
    pub draws: *const SamplingDraw,
    pub edits: *const i32,
    #[doc = "of draws"]
    pub count: i64,
    pub vocabulary: i64,
    #[doc = "of logits, elements"]
    pub row_stride: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SamplingParams"][::core::mem::size_of::<SamplingParams>() - 64usize];
    ["Alignment of SamplingParams"][::core::mem::align_of::<SamplingParams>() - 8usize];
    ["Offset of field: SamplingParams::ids"][::core::mem::offset_of!(SamplingParams, ids) - 0usize];
    ["Offset of field: SamplingParams::choices"]
        [::core::mem::offset_of!(SamplingParams, choices) - 8usize];
    ["Offset of field: SamplingParams::logits"]
        [::core::mem::offset_of!(SamplingParams, logits) - 16usize];
    ["Offset of field: SamplingParams::draws"]
        [::core::mem::offset_of!(SamplingParams, draws) - 24usize];
    ["Offset of field: SamplingParams::edits"]
        [::core::mem::offset_of!(SamplingParams, edits) - 32usize];
    ["Offset of field: SamplingParams::count"]
        [::core::mem::offset_of!(SamplingParams, count) - 40usize];
    ["Offset of field: SamplingParams::vocabulary"]
        [::core::mem::offset_of!(SamplingParams, vocabulary) - 48usize];
    ["Offset of field: SamplingParams::row_stride"]
        [::core::mem::offset_of!(SamplingParams, row_stride) - 56usize];
};
#[doc = " `self_attention`: causal attention of a ragged batch over paged keys and values.\n\n  Sequence s owns query rows q_begin\\[s\\] .. q_begin\\[s+1\\]; they are its last tokens, and its keys,\n  the rows' own included, are the first kv_len\\[s\\] slots of its page table. Query i of n sees keys\n  0 ..= kv_len - n + i. With ALiBi, slopes\\[h\\] * (key - query position) is added to the scaled\n  score.\n\n  Source    arXiv:1706.03762 eq. 1; ALiBi arXiv:2108.12409 sec. 3; pages arXiv:2309.06180\n  Entries   self_attention_{f32,bf16,f16}; prefill and decode\n  Limits    kv_len\\[s\\] >= its query rows; page layout as in `kv_append`; scale > 0\n  Numerics  maxima and sums in f32, merged in the order of the keys: on a card the same bits of a\n            row whatever else is in the batch, its own prefix or others"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SelfAttentionParams {
    #[doc = "(rows, heads*head_dim) T, dense"]
    pub o: *mut ::core::ffi::c_void,
    #[doc = "(rows, ...) T: the q part of \\[q | k | v\\] rows, stride q_stride"]
    pub q: *const ::core::ffi::c_void,
    #[doc = "first page of this layer, layout as in `kv_append`"]
    pub pages: *const ::core::ffi::c_void,
    #[doc = "the stream's, for what parts of the keys leave; null on the host"]
    pub workspace: *mut ::core::ffi::c_void,
    #[doc = "(sequences, table_stride) page numbers"]
    pub tables: *const i32,
    #[doc = "(sequences+1)"]
    pub q_begin: *const i32,
    #[doc = "(sequences)"]
    pub kv_len: *const i32,
    #[doc = "(heads) ALiBi slopes, or null"]
    pub slopes: *const f32,
    pub rows: i64,
    pub sequences: i64,
    pub table_stride: i64,
    #[doc = "elements"]
    pub q_stride: i64,
    #[doc = "elements between pages of this layer"]
    pub page_stride: i64,
    pub heads: i32,
    pub head_dim: i32,
    pub page_tokens: i32,
    #[doc = "which are computed"]
    pub first_head: i32,
    #[doc = "which are computed"]
    pub some_heads: i32,
    #[doc = "of the keys that a table has room for, 64 each; 1 if they are not split"]
    pub parts: i32,
    pub scale: f32,
    pub reserved: i32,
    #[doc = "(query, key) pairs that are not masked; for `cost` only"]
    pub pairs: i64,
    #[doc = "of all sequences; for `cost` only"]
    pub keys: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SelfAttentionParams"][::core::mem::size_of::<SelfAttentionParams>() - 152usize];
    ["Alignment of SelfAttentionParams"][::core::mem::align_of::<SelfAttentionParams>() - 8usize];
    ["Offset of field: SelfAttentionParams::o"]
        [::core::mem::offset_of!(SelfAttentionParams, o) - 0usize];
    ["Offset of field: SelfAttentionParams::q"]
        [::core::mem::offset_of!(SelfAttentionParams, q) - 8usize];
    ["Offset of field: SelfAttentionParams::pages"]
        [::core::mem::offset_of!(SelfAttentionParams, pages) - 16usize];
    ["Offset of field: SelfAttentionParams::workspace"]
        [::core::mem::offset_of!(SelfAttentionParams, workspace) - 24usize];
    ["Offset of field: SelfAttentionParams::tables"]
        [::core::mem::offset_of!(SelfAttentionParams, tables) - 32usize];
    ["Offset of field: SelfAttentionParams::q_begin"]
        [::core::mem::offset_of!(SelfAttentionParams, q_begin) - 40usize];
    ["Offset of field: SelfAttentionParams::kv_len"]
        [::core::mem::offset_of!(SelfAttentionParams, kv_len) - 48usize];
    ["Offset of field: SelfAttentionParams::slopes"]
        [::core::mem::offset_of!(SelfAttentionParams, slopes) - 56usize];
    ["Offset of field: SelfAttentionParams::rows"]
        [::core::mem::offset_of!(SelfAttentionParams, rows) - 64usize];
    ["Offset of field: SelfAttentionParams::sequences"]
        [::core::mem::offset_of!(SelfAttentionParams, sequences) - 72usize];
    ["Offset of field: SelfAttentionParams::table_stride"]
        [::core::mem::offset_of!(SelfAttentionParams, table_stride) - 80usize];
    ["Offset of field: SelfAttentionParams::q_stride"]
        [::core::mem::offset_of!(SelfAttentionParams, q_stride) - 88usize];
    ["Offset of field: SelfAttentionParams::page_stride"]
        [::core::mem::offset_of!(SelfAttentionParams, page_stride) - 96usize];
    ["Offset of field: SelfAttentionParams::heads"]
        [::core::mem::offset_of!(SelfAttentionParams, heads) - 104usize];
    ["Offset of field: SelfAttentionParams::head_dim"]
        [::core::mem::offset_of!(SelfAttentionParams, head_dim) - 108usize];
    ["Offset of field: SelfAttentionParams::page_tokens"]
        [::core::mem::offset_of!(SelfAttentionParams, page_tokens) - 112usize];
    ["Offset of field: SelfAttentionParams::first_head"]
        [::core::mem::offset_of!(SelfAttentionParams, first_head) - 116usize];
    ["Offset of field: SelfAttentionParams::some_heads"]
        [::core::mem::offset_of!(SelfAttentionParams, some_heads) - 120usize];
    ["Offset of field: SelfAttentionParams::parts"]
        [::core::mem::offset_of!(SelfAttentionParams, parts) - 124usize];
    ["Offset of field: SelfAttentionParams::scale"]
        [::core::mem::offset_of!(SelfAttentionParams, scale) - 128usize];
    ["Offset of field: SelfAttentionParams::reserved"]
        [::core::mem::offset_of!(SelfAttentionParams, reserved) - 132usize];
    ["Offset of field: SelfAttentionParams::pairs"]
        [::core::mem::offset_of!(SelfAttentionParams, pairs) - 136usize];
    ["Offset of field: SelfAttentionParams::keys"]
        [::core::mem::offset_of!(SelfAttentionParams, keys) - 144usize];
};
#[doc = " `square_sum`: parts\\[q\\] = \\[sum of x^2, count of what is not finite\\] over part q of x, which has\n  the elements q*each .. (q+1)*each of those that exist. `column_sums` adds up the parts of one\n  tensor or of many.\n\n  Source    the first half of torch.nn.utils.clip_grad_norm_\n  Entries   square_sum_{f32,bf16,f16}\n  Limits    count*each >= n\n  Numerics  f32, in a fixed order; x that is not finite is in the sum, too"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SquareSumParams {
    #[doc = "(count,2)"]
    pub parts: *mut f32,
    #[doc = "(n) T"]
    pub x: *const ::core::ffi::c_void,
    pub n: i64,
    pub count: i64,
    pub each: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SquareSumParams"][::core::mem::size_of::<SquareSumParams>() - 40usize];
    ["Alignment of SquareSumParams"][::core::mem::align_of::<SquareSumParams>() - 8usize];
    ["Offset of field: SquareSumParams::parts"]
        [::core::mem::offset_of!(SquareSumParams, parts) - 0usize];
    ["Offset of field: SquareSumParams::x"][::core::mem::offset_of!(SquareSumParams, x) - 8usize];
    ["Offset of field: SquareSumParams::n"][::core::mem::offset_of!(SquareSumParams, n) - 16usize];
    ["Offset of field: SquareSumParams::count"]
        [::core::mem::offset_of!(SquareSumParams, count) - 24usize];
    ["Offset of field: SquareSumParams::each"]
        [::core::mem::offset_of!(SquareSumParams, each) - 32usize];
};
#[doc = " `clip_factor`: norm = scale sqrt(sums\\[0\\]); factor = \\[scale min(1, max_norm / (norm + 1e-6)),\n  norm\\]: what gradients whose squares add up to sums\\[0\\] are to be multiplied by, and the norm they\n  have after `scale`. Where something was not finite, which sums\\[1\\] counts, the factor is NaN, so\n  that an optimiser changes nothing.\n\n  Source    the second half of torch.nn.utils.clip_grad_norm_\n  Entries   clip_factor_{f32,bf16,f16}: the same\n  Limits    max_norm > 0; inf does not clip\n  Numerics  f32"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ClipFactorParams {
    #[doc = "(2)"]
    pub factor: *mut f32,
    #[doc = "(2)"]
    pub sums: *const f32,
    pub max_norm: f32,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ClipFactorParams"][::core::mem::size_of::<ClipFactorParams>() - 24usize];
    ["Alignment of ClipFactorParams"][::core::mem::align_of::<ClipFactorParams>() - 8usize];
    ["Offset of field: ClipFactorParams::factor"]
        [::core::mem::offset_of!(ClipFactorParams, factor) - 0usize];
    ["Offset of field: ClipFactorParams::sums"]
        [::core::mem::offset_of!(ClipFactorParams, sums) - 8usize];
    ["Offset of field: ClipFactorParams::max_norm"]
        [::core::mem::offset_of!(ClipFactorParams, max_norm) - 16usize];
    ["Offset of field: ClipFactorParams::scale"]
        [::core::mem::offset_of!(ClipFactorParams, scale) - 20usize];
};
#[doc = " `transpose`: y\\[c, r\\] = x\\[r, c\\]; columns of y from `rows` on are 0, so that a product over them\n  may be as long as its kernel likes.\n\n  Source    dx = dy W and dW = dy^T x are `gemm`s of transposed operands\n  Entries   transpose_{f32,bf16,f16}\n  Limits    y_cols >= rows\n  Numerics  a copy, bit for bit"]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct TransposeParams {
    #[doc = "(cols,y_cols) T, stride y_stride"]
    pub y: *mut ::core::ffi::c_void,
    #[doc = "(rows,cols) T, stride x_stride"]
    pub x: *const ::core::ffi::c_void,
    pub rows: i64,
    pub cols: i64,
    pub y_cols: i64,
    pub y_stride: i64,
    pub x_stride: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TransposeParams"][::core::mem::size_of::<TransposeParams>() - 56usize];
    ["Alignment of TransposeParams"][::core::mem::align_of::<TransposeParams>() - 8usize];
    ["Offset of field: TransposeParams::y"][::core::mem::offset_of!(TransposeParams, y) - 0usize];
    ["Offset of field: TransposeParams::x"][::core::mem::offset_of!(TransposeParams, x) - 8usize];
    ["Offset of field: TransposeParams::rows"]
        [::core::mem::offset_of!(TransposeParams, rows) - 16usize];
    ["Offset of field: TransposeParams::cols"]
        [::core::mem::offset_of!(TransposeParams, cols) - 24usize];
    ["Offset of field: TransposeParams::y_cols"]
        [::core::mem::offset_of!(TransposeParams, y_cols) - 32usize];
    ["Offset of field: TransposeParams::y_stride"]
        [::core::mem::offset_of!(TransposeParams, y_stride) - 40usize];
    ["Offset of field: TransposeParams::x_stride"]
        [::core::mem::offset_of!(TransposeParams, x_stride) - 48usize];
};
