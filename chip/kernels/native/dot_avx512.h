/* Exact int8 matrix products with AVX-512 VNNI, cut as in dot_avx2.h, with four columns.

   vpdpbusd multiplies unsigned by signed bytes and adds four products to an int32, modulo 2^32. The
   unsigned operand is x + 128 (the sign bit flipped):
       sum(x * w) = sum((x + 128) * w) - 128 * sum(w).
   The result fits an int32, so sums may wrap on the way. The product is exact for any x and w. */

#define PANEL_TILES 4
#define PANEL_MOST 16 /* rows of a panel: PANEL_ROWS in matmul.h */
#define STEPS (LANES / 64)

typedef struct { /* a panel of x, sign bits flipped */
    uint8_t rows[PANEL_MOST][PANEL_TILES * LANES];
} FN(Flipped);

static void FN(flip)(ptrdiff_t rows, Rows x, ptrdiff_t tiles, FN(Flipped) * out) {
    for (ptrdiff_t r = 0; r < rows; r++) {
        const uint8_t *row = (const uint8_t *)(x.at + r * x.stride);
        for (ptrdiff_t i = 0; i < tiles * LANES; i++) out->rows[r][i] = row[i] ^ 0x80;
    }
}

/* sums[c] += the 16 parts of v[c] for 4 columns; adding and transposing go together. */
INLINE void FN(quad_total)(const __m512i v[4], int32_t *sums) {
    int32_t parts[16];
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]),
                                        _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]),
                                        _mm512_unpackhi_epi32(v[2], v[3]));
    _mm512_storeu_si512(parts, _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd),
                                                _mm512_unpackhi_epi64(ab, cd)));
    for (int c = 0; c < 4; c++)
        sums[c] += (parts[c] + parts[c + 4]) + (parts[c + 8] + parts[c + 12]);
}

/* sums[c] += the total of v[c] for 4 columns or 1. */
INLINE void FN(totals)(const int columns, const __m512i v[4], int32_t *sums) {
    if (columns == 4) FN(quad_total)(v, sums);
    else sums[0] += _mm512_reduce_add_epi32(v[0]);
}

/* One row times four columns that lie `apart` columns from each other; see dot_avx2.h. */
INLINE void FN(row4)(const uint8_t *x, const int8_t *w, ptrdiff_t apart, int32_t *acc) {
    const __m512i offset = _mm512_set1_epi8((char)0x80); /* 128 as an unsigned byte */
    __m512i sum[4], extra[4];
    int32_t totals[4] = {0};
    for (int c = 0; c < 4; c++) sum[c] = extra[c] = _mm512_setzero_si512();
    for (int i = 0; i < STEPS; i++) {
        const __m512i lanes = _mm512_loadu_si512(x + 64 * i);
        for (int c = 0; c < 4; c++) {
            const __m512i v = _mm512_loadu_si512(w + c * apart * LANES + 64 * i);
            sum[c] = _mm512_dpbusd_epi32(sum[c], lanes, v);
            extra[c] = _mm512_dpbusd_epi32(extra[c], offset, v);
        }
    }
    for (int c = 0; c < 4; c++) sum[c] = _mm512_sub_epi32(sum[c], extra[c]);
    FN(quad_total)(sum, totals);
    for (int c = 0; c < 4; c++) acc[c * apart] += totals[c];
}

/* acc[r][c] += (x[r] + 128) . w[c]; `rows` <= 4 and `columns` (4 or 1) are constants
   where this is expanded. */
INLINE void FN(microkernel)(const int rows, const int columns,
                            const uint8_t (*x)[PANEL_TILES * LANES], const int8_t *w,
                            ptrdiff_t tile_stride, ptrdiff_t tiles, int32_t (*acc)[LANES]) {
    __m512i sum[4][4];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) sum[r][c] = _mm512_setzero_si512();
    for (ptrdiff_t t = 0; t < tiles; t++)
        for (int i = 0; i < STEPS; i++) {
            __m512i v[4];
            for (int c = 0; c < columns; c++)
                v[c] = _mm512_loadu_si512(w + t * tile_stride + c * LANES + 64 * i);
            for (int r = 0; r < rows; r++) {
                const __m512i lanes = _mm512_loadu_si512(x[r] + t * LANES + 64 * i);
                for (int c = 0; c < columns; c++)
                    sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], lanes, v[c]);
            }
        }
    for (int r = 0; r < rows; r++) FN(totals)(columns, sum[r], acc[r]);
}

/* acc[r][c] -= 128 * sum(w[c]) for every row. */
INLINE void FN(subtract_offset)(const int columns, ptrdiff_t rows, const int8_t *w,
                                ptrdiff_t tile_stride, ptrdiff_t tiles, int32_t (*acc)[LANES]) {
    const __m512i offset = _mm512_set1_epi8((char)0x80); /* 128 as an unsigned byte */
    __m512i sum[4];
    int32_t totals[4] = {0};
    for (int c = 0; c < columns; c++) sum[c] = _mm512_setzero_si512();
    for (ptrdiff_t t = 0; t < tiles; t++)
        for (int i = 0; i < STEPS; i++)
            for (int c = 0; c < columns; c++) {
                const int8_t *at = w + t * tile_stride + c * LANES + 64 * i;
                sum[c] = _mm512_dpbusd_epi32(sum[c], offset, _mm512_loadu_si512(at));
            }
    FN(totals)(columns, sum, totals);
    for (ptrdiff_t r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) acc[r][c] -= totals[c];
}

INLINE void FN(micropanel)(const int columns, ptrdiff_t rows, const FN(Flipped) * x,
                           const int8_t *w, ptrdiff_t tile_stride, ptrdiff_t tiles,
                           int32_t (*acc)[LANES]) {
    const uint8_t(*row)[PANEL_TILES * LANES] = x->rows;
    FN(subtract_offset)(columns, rows, w, tile_stride, tiles, acc);
    for (; rows >= 4; rows -= 4, acc += 4, row += 4)
        FN(microkernel)(4, columns, row, w, tile_stride, tiles, acc);
    if (rows == 3) FN(microkernel)(3, columns, row, w, tile_stride, tiles, acc);
    if (rows == 2) FN(microkernel)(2, columns, row, w, tile_stride, tiles, acc);
    if (rows == 1) FN(microkernel)(1, columns, row, w, tile_stride, tiles, acc);
}

/* acc[r][c] += x[r] . w[c] over `tiles` <= PANEL_TILES tiles of a block of `columns` columns. */
static void FN(panel)(ptrdiff_t rows, Rows x, ptrdiff_t columns, const int8_t *w, ptrdiff_t tiles,
                      int32_t (*acc)[LANES]) {
    const ptrdiff_t stride = columns * LANES;
    FN(Flipped) flipped;
    ptrdiff_t c = 0;
    FN(flip)(rows, x, tiles, &flipped);
    if (rows == 1 && tiles == 1) {
        const ptrdiff_t apart = columns / 4;
        for (; c < apart; c++) FN(row4)(flipped.rows[0], w + c * LANES, apart, acc[0] + c);
        c = 4 * apart;
    }
    for (; c + 4 <= columns; c += 4)
        FN(micropanel)(4, rows, &flipped, w + c * LANES, stride, tiles,
                       (int32_t(*)[LANES])(acc[0] + c));
    for (; c < columns; c++)
        FN(micropanel)(1, rows, &flipped, w + c * LANES, stride, tiles,
                       (int32_t(*)[LANES])(acc[0] + c));
}
