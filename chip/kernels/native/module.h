/* Every function of the module, with its arguments: first an instruction set, then those named
   here.

   This is the one list of them. From it follow the functions that Python calls, the number of
   arguments that each accepts, the signature that `help` shows, and the prototypes below. The
   kernels have the names and arguments of chip.kernels.twin.Kernels; a test compares them. */

#ifndef LPU_MODULE_H
#define LPU_MODULE_H

#include "arguments.h"

#define FUNCTIONS(F)                                                                \
    F(norm_i8, x, gamma, eps, q, s)                                                 \
    F(norm_f16, x, gamma, eps, y)                                                   \
    F(head_norm, x, gamma, eps, y)                                                  \
    F(layer_norm, x, gamma, beta, eps)                                              \
    F(quantise_i8, x, q, s)                                                         \
    F(round_f16, x, y)                                                              \
    F(gather_i8, segments, q, s)                                                    \
    F(gather_f16, segments, y)                                                      \
    F(matmul_i8, x, sx, w, sw, y)                                                   \
    F(matmul_i4, x, sx, w, sw, y)                                                   \
    F(matmul_f16, x, w, y)                                                          \
    F(add_bias, x, bias, y)                                                         \
    F(scaled_rope_cache_i8, qkv, rope, positions, q, sq, k, ks, v, vs, scale)       \
    F(rope_cache_f16, qkv, rope, positions, q, k, v)                                \
    F(masked_attention_i8, q, sq, k, ks, v, vs, kv_of, positions, window, ring, cap, sinks, out) \
    F(masked_attention_f16, q, k, v, kv_of, positions, scale, window, ring, cap, sinks, out) \
    F(add, x, segments)                                                             \
    F(add_norm, x, segments, gamma, eps)                                            \
    F(route, x, e, g, after)                                                        \
    F(weighted_sum, y, g, out)                                                      \
    F(cap, x, cap)                                                                  \
    F(silu, gu, out)                                                                \
    F(geglu, gu, out)                                                               \
    F(clamped_silu, gu, out)                                                        \
    F(gelu, x, out)                                                                 \
    F(gelu_tanh, x, out)                                                            \
    F(logit_hash, logits, first_column)                                             \
    F(synthetic_rows, key, first_row, out)                                          \
    F(synthetic_tiled, key, first_row, rows, k, block, at)                          \
    F(quantize_rows, w, q, scales, most)                                            \
    F(write_packed, q, block, at)                                                   \
    F(read_words, data)

typedef PyObject *const *Args;

/* Do the work of one call; `a` holds the arguments in the order above. NULL: an exception is set.
   */
typedef PyObject *Binding(Call *call, const Table *table, Args a);

#define PROTOTYPE(name, ...) Binding bind_##name;
FUNCTIONS(PROTOTYPE)
#undef PROTOTYPE

#endif
