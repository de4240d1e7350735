/* Exact int8 products in plain C, in loops that a compiler can vectorise. */

#define PANEL_TILES 4

/* acc[r][c] += x[r] . w[c] over `tiles` tiles; see dot_avx2.h. */
static void FN(panel)(ptrdiff_t rows, Rows x, ptrdiff_t columns, const int8_t *w, ptrdiff_t tiles,
                      int32_t (*acc)[LANES]) {
    for (ptrdiff_t t = 0; t < tiles; t++)
        for (ptrdiff_t c = 0; c < columns; c++)
            for (ptrdiff_t r = 0; r < rows; r++) {
                const int8_t *row = (const int8_t *)x.at + r * x.stride + t * LANES;
                acc[r][c] += FN(dot)(row, w + (t * columns + c) * LANES, LANES);
            }
}

/* sums[g][c] = the dot of group g of a tile's lanes with column c. A vector has two columns lane by
   lane: v in the low four bits, `vectors` + v in the high ones (chip/kernels/packed.py). */
static void FN(packed_sums)(const int8_t *x, const int8_t *w, ptrdiff_t vectors, ptrdiff_t groups,
                            int32_t (*sums)[PACKED]) {
    const ptrdiff_t group = LANES / groups;
    for (ptrdiff_t v = 0; v < vectors; v++, w += LANES)
        for (ptrdiff_t g = 0; g < groups; g++) {
            int32_t low = 0, high = 0;
            for (ptrdiff_t i = g * group; i < (g + 1) * group; i++) {
                low += (((w[i] & 15) ^ 8) - 8) * x[i];
                high += (w[i] >> 4) * x[i];
            }
            sums[g][v] = low;
            sums[g][vectors + v] = high;
        }
}

#include "packed_rows.h"
