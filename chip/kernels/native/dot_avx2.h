/* Exact int8 matrix products with AVX2; `products` is in attend_avx2.h. A panel of rows of x goes
   over micropanels of two columns; the microkernel keeps the sums of up to 4 x 2 in registers. */

#define PANEL_TILES 4
#define STEPS (LANES / 32)

/* sum += part, in place. In plain C, GCC 12 copies and spills the sums of `microkernel`. */
INLINE void FN(accumulate)(__m256i *sum, __m256i part) {
    __asm__("vpaddd %1, %0, %0" : "+x"(*sum) : "x"(part));
}

/* One row times four columns that lie `apart` columns from each other. Memory gives four streams
   more bandwidth than one (benchmarks/kernels.py). Weights are prefetched 640 bytes ahead and past
   the outer caches, which stay with what other code reads. */
INLINE void FN(row4)(const int8_t *x, const int8_t *w, ptrdiff_t apart, int32_t *acc) {
    __m256i sum[4];
    int32_t totals[4];
    for (int c = 0; c < 4; c++) sum[c] = _mm256_setzero_si256();
    for (int i = 0; i < STEPS; i++) {
        const __m256i lanes = FN(load)(x + 32 * i);
        for (int c = 0; c < 4; c++) {
            _mm_prefetch((const char *)(w + c * apart * LANES + 32 * i + 640), _MM_HINT_NTA);
            const __m256i v = FN(load)(w + c * apart * LANES + 32 * i);
            sum[c] = _mm256_add_epi32(sum[c], FN(products)(_mm256_abs_epi8(v), v, lanes));
        }
    }
    _mm_storeu_si128((__m128i *)totals, FN(total4)(sum[0], sum[1], sum[2], sum[3]));
    for (int c = 0; c < 4; c++) acc[c * apart] += totals[c];
}

/* `rows` <= 4 and `columns` <= 2 are constants where this is expanded. */
INLINE void FN(microkernel)(const int rows, const int columns, Rows x, const int8_t *w,
                            ptrdiff_t tile_stride, ptrdiff_t tiles, int32_t (*acc)[LANES]) {
    __m256i sum[4][2];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) sum[r][c] = _mm256_setzero_si256();
    for (ptrdiff_t t = 0; t < tiles; t++)
        for (int i = 0; i < STEPS; i++) {
            __m256i v[2], size[2];
            for (int c = 0; c < columns; c++) {
                v[c] = FN(load)(w + t * tile_stride + c * LANES + 32 * i);
                size[c] = _mm256_abs_epi8(v[c]);
            }
            for (int r = 0; r < rows; r++) {
                const __m256i lanes =
                    FN(load)((const int8_t *)x.at + r * x.stride + t * LANES + 32 * i);
                for (int c = 0; c < columns; c++)
                    FN(accumulate)(&sum[r][c], FN(products)(size[c], v[c], lanes));
            }
        }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) acc[r][c] += FN(total)(sum[r][c]);
}

INLINE void FN(micropanel)(const int columns, ptrdiff_t rows, Rows x, const int8_t *w,
                           ptrdiff_t tile_stride, ptrdiff_t tiles, int32_t (*acc)[LANES]) {
    for (; rows >= 4; rows -= 4, acc += 4, x.at += 4 * x.stride)
        FN(microkernel)(4, columns, x, w, tile_stride, tiles, acc);
    if (rows == 3) FN(microkernel)(3, columns, x, w, tile_stride, tiles, acc);
    if (rows == 2) FN(microkernel)(2, columns, x, w, tile_stride, tiles, acc);
    if (rows == 1) FN(microkernel)(1, columns, x, w, tile_stride, tiles, acc);
}

/* acc[r][c] += x[r] . w[c] over `tiles` tiles of a block of `columns` columns. A single row comes
   with one tile at a time. */
static void FN(panel)(ptrdiff_t rows, Rows x, ptrdiff_t columns, const int8_t *w, ptrdiff_t tiles,
                      int32_t (*acc)[LANES]) {
    const ptrdiff_t stride = columns * LANES;
    ptrdiff_t c = 0;
    if (rows == 1 && tiles == 1) {
        const ptrdiff_t apart = columns / 4;
        for (; c < apart; c++) FN(row4)((int8_t *)x.at, w + c * LANES, apart, acc[0] + c);
        c = 4 * apart;
    }
    for (; c + 2 <= columns; c += 2)
        FN(micropanel)(2, rows, x, w + c * LANES, stride, tiles, (int32_t(*)[LANES])(acc[0] + c));
    if (c < columns)
        FN(micropanel)(1, rows, x, w + c * LANES, stride, tiles, (int32_t(*)[LANES])(acc[0] + c));
}

/* Products with int4 weights. A byte has two columns' weights of a lane (chip/kernels/packed.py);
   weight + 8 is unsigned, at most 15, so vpmaddubsw stays far below an int16's bounds:
       sum(x * w) = sum(x * (w + 8)) - 8 * sum(x). */

#define PACKED_AT_ONCE 4 /* vectors of weights: eight columns */

/* low_sums, high_sums = sum(x * (w + 8)) over `steps` times 32 lanes of vectors v that lie `apart`
   vectors from each other; `many` of them, a constant where this is expanded. */
INLINE void FN(packed_group)(const int many, const int8_t *x, const int8_t *w, ptrdiff_t apart,
                             ptrdiff_t steps, int32_t *low_sums, int32_t *high_sums) {
    const __m256i low = _mm256_set1_epi8(15), flip = _mm256_set1_epi8((char)0x88);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i total[2 * PACKED_AT_ONCE];
    for (int v = 0; v < 2 * many; v++) total[v] = _mm256_setzero_si256();
    for (ptrdiff_t from = 0; from < steps; from += STEPS / 2) {
        const ptrdiff_t end = steps - from < STEPS / 2 ? steps : from + STEPS / 2;
        __m256i part[2 * PACKED_AT_ONCE]; /* int16: five times two products of at most 15 * 128 */
        for (int v = 0; v < 2 * many; v++) part[v] = _mm256_setzero_si256();
        for (ptrdiff_t i = from; i < end; i++) {
            const __m256i lanes = FN(load)(x + 32 * i);
            for (int v = 0; v < many; v++) {
                const int8_t *at = w + v * apart * LANES + 32 * i;
                _mm_prefetch((const char *)(at + 640), _MM_HINT_T0);
                const __m256i both = _mm256_xor_si256(FN(load)(at), flip);
                const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                part[2 * v] = _mm256_add_epi16(
                    part[2 * v], _mm256_maddubs_epi16(_mm256_and_si256(both, low), lanes));
                part[2 * v + 1] =
                    _mm256_add_epi16(part[2 * v + 1], _mm256_maddubs_epi16(high, lanes));
            }
        }
        for (int v = 0; v < 2 * many; v++)
            total[v] = _mm256_add_epi32(total[v], _mm256_madd_epi16(part[v], ones));
    }
    for (int v = 0; v < 2 * many; v += 2) {
        const __m256i zero = _mm256_setzero_si256();
        int32_t found[4];
        _mm_storeu_si128((__m128i *)found, FN(total4)(total[v], total[v + 1], zero, zero));
        low_sums[v / 2 * apart] = found[0];
        high_sums[v / 2 * apart] = found[1];
    }
}

/* sums[g][c] = the dot of group g of a tile's lanes with column c. */
static void FN(packed_sums)(const int8_t *x, const int8_t *w, ptrdiff_t vectors, ptrdiff_t groups,
                            int32_t (*sums)[PACKED]) {
    const ptrdiff_t steps = STEPS / groups, apart = vectors / PACKED_AT_ONCE;
    for (ptrdiff_t g = 0; g < groups; g++, x += LANES / groups, w += LANES / groups) {
        ptrdiff_t v = 0;
        int32_t eight = 0;
        for (ptrdiff_t i = 0; i < LANES / groups; i++) eight += 8 * x[i];
        for (; v < apart; v++)
            FN(packed_group)(PACKED_AT_ONCE, x, w + v * LANES, apart, steps, sums[g] + v,
                             sums[g] + vectors + v);
        for (v = PACKED_AT_ONCE * apart; v < vectors; v++)
            FN(packed_group)(1, x, w + v * LANES, 1, steps, sums[g] + v, sums[g] + vectors + v);
        for (ptrdiff_t c = 0; c < 2 * vectors; c++) sums[g][c] -= eight;
    }
}

#include "packed_rows.h"
