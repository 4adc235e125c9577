#pragma once
#include <stdint.h>

/** How one token is chosen. Fractions are 64 bits after the point.
 *
 *  Of `edits`, penalised_begin .. penalised_end are tokens whose score is divided by `penalty`, or
 *  multiplied if it is below 0; penalised_end .. banned_end are tokens that are not chosen. */
typedef struct SamplingDraw {
  uint64_t uniform;  /**< in 0..1: where in the distribution the token is taken */
  uint64_t top_p;    /**< share of the mass that is kept; all bits: everything */
  uint64_t min_p;    /**< least weight that is kept, in units of 2^-40; 0: everything */
  float temperature; /**< 0: the best token is taken */
  float penalty;
  int32_t top_k;     /**< tokens kept; 0: all */
  int32_t row;       /**< of the logits */
  int32_t penalised_begin, penalised_end, banned_end;
  int32_t alternatives; /**< to report, at most 20 */
} SamplingDraw;

/** What was chosen, and what the model itself thought of it:
 *  ln p(i) = logit(i) - maximum - ln(sum 2^-40), before edits, temperature and truncation. */
typedef struct SamplingChoice {
  uint64_t sum;  /**< of floor(2^40 exp(x - maximum)) */
  float maximum; /**< of the row */
  float logit;   /**< of `id`, or what is wrong with it */
  int32_t id;    /**< the token, or the first that is at fault */
  int32_t fault; /**< 0; else NaN, inf or nothing but -inf: 1 in the row, 2 once edited */
  float top_logit[20];
  int32_t top_id[20]; /**< the best of the row, best first, of equals the lower first */
} SamplingChoice;

/** `sampling`: the next token of a sequence: the best, or one drawn from the likelier part.
 *
 *  Scores s are the row with its edits. Tokens are ordered by |y|, y = (s - max s) / temperature,
 *  then by id; their weights are w = floor(2^40 exp(y)), whole numbers, so that sums are exact in
 *  any order. Kept are: the `top_k` first and what ties with the last of them; of these the fewest
 *  first whose weight reaches top_p of the whole; of these those with w >= min_p. Chosen is the
 *  first token up to which the kept weight is more than `uniform` of the whole.
 *
 *  Source    transformers 4.28 - 4.33 LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper
 *  Entries   sampling_{f32,bf16,f16}
 *  Limits    vocabulary in 1 .. 2^18; ids of edits inside it
 *  Numerics  f32 as written, nothing fused: the same bits on every device */
typedef struct SamplingParams {
  int32_t *ids;            /**< (draws): the tokens alone, where the next step reads them */
  SamplingChoice *choices; /**< (draws) */
  const void *logits;      /**< (rows, vocabulary) T */
  const SamplingDraw *draws;
  const int32_t *edits;
  int64_t count;      /**< of draws */
  int64_t vocabulary;
  int64_t row_stride; /**< of logits, elements */
} SamplingParams;
