/** Every kernel's contract. The only header that bindgen reads; `src/contracts.rs` is made from it
 *  (`MEDFLAMINGO_BLESS=1 cargo test --test contracts`).
 *
 *  Rules: plain C; fixed-width integers, `float` and pointers only; members ordered by size so that
 *  no struct has padding inside; matrices are row-major, sizes and row strides in elements. `T` is
 *  the storage type of the entry (f32, bf16, f16); arithmetic is f32. Letters as in the model:
 *  B batch, T tokens, N images, P patches, L latents, D width, H heads, d head width,
 *  V vocabulary. */
#pragma once
#include <stdint.h>

#include "activation.h"
#include "adamw.h"
#include "adamw8.h"
#include "attention.h"
#include "attention_backward.h"
#include "attention_decode.h"
#include "checksum.h"
#include "column_sums.h"
#include "cross_attention.h"
#include "cross_entropy.h"
#include "embedding.h"
#include "gate_backward.h"
#include "gemm.h"
#include "gemm_quantized.h"
#include "kv_append.h"
#include "layernorm.h"
#include "norm_backward.h"
#include "patchify.h"
#include "quantize.h"
#include "rmsnorm.h"
#include "rope.h"
#include "sampling.h"
#include "self_attention.h"
#include "square_sum.h"
#include "transpose.h"
