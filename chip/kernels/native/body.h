/* The kernels of one instruction set: included once per set, after FN, the fp16 conversions
   (half_*.h) and the int8 products (dot_*.h). */

#include "matmul.h"
#include "vectors.h"
#include "attention.h"
#include "experts.h"
#include "weights.h"

#define ENTRY(name) .name = FN(name),

const Table FN(table) = {
    .name = ISA_NAME,
    .norm = FN(norm),
    .head_norm = FN(head_norm),
    .layer_norm = FN(layer_norm),
    .whole = FN(whole),
    .gather_i8 = FN(gather_i8),
    .matmul_i8 = FN(matmul_i8),
    .matmul_i4 = FN(matmul_i4),
    .matmul_f16 = FN(matmul_f16),
    .rope = FN(rope),
    .attention_i8 = FN(attention_i8),
    .attention_f16 = FN(attention_f16),
    .add = FN(add),
    .add_norm = FN(add_norm),
    .route = FN(route),
    .weighted_sum = FN(weighted_sum),
    .cap = FN(cap),
    .add_bias = FN(add_bias),
    GATES(ENTRY)
    APPLIED(ENTRY)
    .synthetic = FN(synthetic),
    .quantize_row = FN(quantize_row),
    .pack_row = FN(pack_row),
    .read_words = FN(read_words),
};

#undef ENTRY
