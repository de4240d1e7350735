/* What every instruction set provides: one table of kernels over plain pointers.

   Contracts, shapes and the order of every operation: chip/kernels/twin.py, the definition. The
   bindings (bind_*.c) have checked everything before they call one of these. A kernel holds no
   state, touches no Python object and runs without the interpreter's lock.

   To keep the bits: compile with -ffp-contract=off and without -ffast-math, and never reorder an
   fp32 or fp64 operation. Lanes are independent, so any vector width gives the same result. */

#ifndef LPU_KERNELS_H
#define LPU_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* -DLPU_PORTABLE_ONLY builds what other machines get. */
#if defined(__x86_64__) && !defined(LPU_PORTABLE_ONLY)
#define LPU_X86 1
#endif

#define LANES 320
#define PACKED (2 * LANES) /* columns of a block of int4 weights */
#define MOST_GROUPS 10     /* of a tile of int4 weights: of 32 lanes */
#define PARTIALS 16
#define MAX_TERMS 131072 /* times 127 * 127 < 2^31 */
#define MAX_HEAD 1024

#define INLINE static inline __attribute__((always_inline))

typedef struct { /* row r starts at `at + r * stride`; strides are in bytes */
    char *at;
    ptrdiff_t stride;
} Rows;

typedef struct { /* head j of row r starts at `at + r * row + j * head` */
    char *at;
    ptrdiff_t row, head;
} Heads;

typedef struct { /* a segment of a vector that was exchanged: [rows, n] fp16 */
    Rows rows;
    ptrdiff_t n;
} Segment;

typedef struct { /* segments side by side: `width` is the sum of their n */
    const Segment *at;
    ptrdiff_t parts, width;
} Segments;

typedef struct { /* one KV head: values [tokens, head_dim], and with int8 scales [tokens] */
    Rows values;
    float *scales;
} Cache;

typedef struct { /* an output [rows, kp]: zeros from lane n on */
    ptrdiff_t rows, n, kp;
    Rows q;
    float *s; /* int8 with these scales; NULL: fp16 */
} Padded;

typedef struct {
    Padded out;
    Rows x; /* fp32 [rows, out.n] */
    const float *gamma;
    float eps;
} Norm;

typedef struct { /* each head of x: fp32 [rows, heads * n] to y */
    ptrdiff_t rows, heads, n;
    Rows x, y;
    const float *gamma;
    float eps;
} HeadNorm;

typedef struct { /* x fp32 [rows, experts]; e int32 and g fp32 [rows, chosen] */
    ptrdiff_t rows, experts, chosen;
    int after; /* the softmax is over the chosen ones alone */
    Rows x, e, g;
} Route;

typedef struct { /* y fp32 [rows, parts, n], g fp32 [rows, parts], out [rows, n] */
    ptrdiff_t rows, parts, n;
    Heads y;
    Rows g, out;
    int half; /* out is fp16 */
} WeightedSum;

typedef struct {
    Padded out;
    Segments segments;
} Gather;

typedef struct { /* the norm of the segments is added to x: fp32 [rows, segments.width] */
    ptrdiff_t rows;
    Rows x;
    Segments segments;
    const float *gamma;
    float eps;
} AddNorm;

typedef struct { /* x becomes its LayerNorm */
    ptrdiff_t rows, n;
    Rows x;
    const float *gamma, *beta;
    float eps;
} LayerNorm;

typedef struct { /* rows as they are, to be quantised or rounded */
    Padded out;
    Rows x;
} Whole;

typedef struct {
    ptrdiff_t rows, columns, kp;
    Rows x, y;
    const float *sx, *sw; /* not fp16 */
    const void *w;
    int half; /* y is fp16 */
    ptrdiff_t group;     /* int4 only: rows of K that share a scale */
    ptrdiff_t sw_stride; /* int4 only: bytes from one group's scales to the next */
} Matmul;

typedef struct {
    ptrdiff_t rows, n_q, n_kv, hd;
    Rows qkv, sq; /* sq with int8; NULL: fp16 */
    Heads rope, q;
    int rotates; /* there are tables */
    float scale; /* int8 only: of scores */
    const int64_t *positions;
    const Cache *k, *v;
} Rope;

typedef struct {
    ptrdiff_t rows, n_q, n_kv, hd;
    Heads q;
    Rows sq, out;
    const int64_t *positions;
    const ptrdiff_t *kv_of;
    const Cache *k, *v;
    float scale; /* fp16 only */
    int half;    /* out is fp16 */
    ptrdiff_t window;   /* 0: a row sees all tokens up to its own */
    ptrdiff_t ring;     /* slots of the ring; 0: token t is in slot t */
    float cap, per_cap; /* of scores; 0: none */
    const float *sinks; /* a score of no token for each head; NULL: none */
} Attention;

typedef struct { /* of attention: one item for each slot that a row may see */
    float *scores;
    int32_t *sums; /* at least MAX_HEAD: q.k of each token, then P.V of each lane */
    void *p; /* the softmax: int8 or fp16 */
} Scratch;

/* Gates; vmath.h has NAME_f32 of each. */
#define GATES(F) F(silu) F(geglu) F(clamped_silu)

typedef long Gate(ptrdiff_t rows, ptrdiff_t n, Rows gu, Rows out, int half); /* out: [rows, n] */
#define FIELD(name) Gate *name;

/* Functions of one value; vmath.h has NAME_f32 of each. */
#define APPLIED(F) F(gelu) F(gelu_tanh)

typedef long Apply(ptrdiff_t rows, ptrdiff_t n, Rows x, Rows out, int half); /* out: [rows, n] */
#define APPLY_FIELD(name) Apply *name;

/* Functions that return long give the number of saturated fp16 roundings, or -1: out of memory. */
typedef struct {
    const char *name;
    long (*norm)(const Norm *);
    void (*head_norm)(const HeadNorm *);
    void (*layer_norm)(const LayerNorm *);
    long (*whole)(const Whole *);
    long (*gather_i8)(const Gather *);
    long (*matmul_i8)(const Matmul *);
    long (*matmul_i4)(const Matmul *);
    long (*matmul_f16)(const Matmul *);
    long (*rope)(const Rope *);
    long (*attention_i8)(const Attention *);
    long (*attention_f16)(const Attention *);
    void (*add)(ptrdiff_t rows, Rows x, const Segments *segments);
    long (*add_norm)(const AddNorm *);
    long (*route)(const Route *);
    long (*weighted_sum)(const WeightedSum *);
    void (*cap)(ptrdiff_t rows, ptrdiff_t n, Rows x, float cap, float per);
    long (*add_bias)(ptrdiff_t rows, ptrdiff_t n, Rows x, const float *bias, Rows y, int half);
    GATES(FIELD)
    APPLIED(APPLY_FIELD)
    void (*synthetic)(uint64_t key, uint64_t row, ptrdiff_t k, int8_t *out, ptrdiff_t tile_stride);
    float (*quantize_row)(ptrdiff_t k, const float *w, int8_t *q, float most);
    void (*pack_row)(ptrdiff_t k, const int8_t *q, int8_t *out, ptrdiff_t tile_stride, int shift);
    uint64_t (*read_words)(const char *at, ptrdiff_t bytes);
} Table;
#undef FIELD
#undef APPLY_FIELD

extern const Table table_portable, table_avx2, table_avx512, table_emulated;

#endif
