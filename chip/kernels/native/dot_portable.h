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
