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

/* Products with int4 weights. A byte has two columns' weights of a lane (chip/kernels/packed.py).
   vpdpbusd's unsigned operand is weight + 8, or 16 times that for the high half, which is left where
   it is:  sum(x * w) = sum(x * (w + 8)) - 8 * sum(x).
   A term is 64 lanes of a group; where a group begins or ends within them, others count zero. */

#define PACKED_AT_ONCE 8 /* vectors of weights: 16 columns */
#define MOST_TERMS 10
#define AHEAD 640 /* bytes to the weights that are prefetched */

typedef struct {
    int8_t x[MOST_TERMS][64];
    int at[MOST_TERMS];        /* first lane of a term */
    int first[MOST_TERMS + 1]; /* term of each group */
    int32_t eight[MOST_TERMS]; /* 8 * sum(x) of each group */
} FN(Terms);

static void FN(cut_terms)(const int8_t *x, int groups, FN(Terms) * out) {
    const int group = LANES / groups;
    int term = 0;
    memset(out->x, 0, sizeof out->x);
    for (int g = 0; g < groups; g++) {
        int32_t sum = 0;
        out->first[g] = term;
        for (int from = g * group; from < (g + 1) * group; term++) {
            const int start = from / 64 * 64;
            const int end = start + 64 < (g + 1) * group ? start + 64 : (g + 1) * group;
            memcpy(out->x[term] + from - start, x + from, (size_t)(end - from));
            out->at[term] = start;
            from = end;
        }
        for (int i = g * group; i < (g + 1) * group; i++) sum += x[i];
        out->eight[g] = 8 * sum;
    }
    out->first[groups] = term;
}

/* The sums of 16 parts each of four columns v, as four items of each quarter of 128 bits. */
INLINE __m512i FN(quarters)(const __m512i *v) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]),
                                        _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]),
                                        _mm512_unpackhi_epi32(v[2], v[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/* The sums of the 16 parts of each of 16 columns v. */
INLINE __m512i FN(total16)(const __m512i v[16]) {
    const __m512i a = FN(quarters)(v), b = FN(quarters)(v + 4);
    const __m512i c = FN(quarters)(v + 8), d = FN(quarters)(v + 12);
    const __m512i ab = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88),
                                        _mm512_shuffle_i32x4(a, b, 0xDD));
    const __m512i cd = _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x88),
                                        _mm512_shuffle_i32x4(c, d, 0xDD));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88),
                            _mm512_shuffle_i32x4(ab, cd, 0xDD));
}

/* low and high = the dots of group g of a tile's lanes with both columns of vectors that lie `apart`
   vectors from each other; `many` of them, a constant where this is expanded. */
INLINE void FN(packed_vectors)(const int many, const FN(Terms) * terms, int g, const int8_t *w,
                               ptrdiff_t apart, int32_t *low, int32_t *high) {
    static const int32_t shifts[16] = {0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4};
    const __m512i flip = _mm512_set1_epi8((char)0x88), of_low = _mm512_set1_epi8(15);
    const __m512i of_high = _mm512_set1_epi8((char)0xF0);
    __m512i sum[2 * PACKED_AT_ONCE];
    int32_t totals[2 * PACKED_AT_ONCE];
    for (int c = 0; c < 2 * PACKED_AT_ONCE; c++) sum[c] = _mm512_setzero_si512();
    for (int t = terms->first[g]; t < terms->first[g + 1]; t++) {
        const __m512i lanes = _mm512_loadu_si512(terms->x[t]);
        for (int v = 0; v < many; v++) {
            const int8_t *at = w + v * apart * LANES + terms->at[t];
            const __m512i both = _mm512_loadu_si512(at);
            _mm_prefetch((const char *)(at + AHEAD), _MM_HINT_T0);
            /* 0x28: (both ^ flip) & mask */
            sum[v] = _mm512_dpbusd_epi32(
                sum[v], _mm512_ternarylogic_epi32(both, flip, of_low, 0x28), lanes);
            sum[PACKED_AT_ONCE + v] = _mm512_dpbusd_epi32(
                sum[PACKED_AT_ONCE + v], _mm512_ternarylogic_epi32(both, flip, of_high, 0x28),
                lanes);
        }
    }
    const __m512i found = _mm512_srav_epi32(FN(total16)(sum), _mm512_loadu_si512(shifts));
    _mm512_storeu_si512(totals, _mm512_sub_epi32(found, _mm512_set1_epi32(terms->eight[g])));
    for (int v = 0; v < many; v++) {
        low[v * apart] = totals[v];
        high[v * apart] = totals[PACKED_AT_ONCE + v];
    }
}

/* sums[g][c] = the dot of group g of a tile's lanes with column c. */
static void FN(packed_sums)(const int8_t *x, const int8_t *w, ptrdiff_t vectors, ptrdiff_t groups,
                            int32_t (*sums)[PACKED]) {
    const ptrdiff_t apart = vectors / PACKED_AT_ONCE;
    FN(Terms) terms;
    FN(cut_terms)(x, (int)groups, &terms);
    for (ptrdiff_t v = 0; v < apart; v++)
        for (int g = 0; g < groups; g++)
            FN(packed_vectors)(PACKED_AT_ONCE, &terms, g, w + v * LANES, apart, sums[g] + v,
                               sums[g] + vectors + v);
    for (ptrdiff_t v = PACKED_AT_ONCE * apart; v < vectors; v++)
        for (int g = 0; g < groups; g++)
            FN(packed_vectors)(1, &terms, g, w + v * LANES, 1, sums[g] + v,
                               sums[g] + vectors + v);
}

/* Many rows: a tile is unpacked once, so that a vector has four lanes of 16 columns. No vector is
   summed across then, and four lanes of x meet them as one item. */

#define PACKED_ROWS 4   /* rows at once */
#define WORTH_OPENING 8 /* rows for which a tile is unpacked */
#define FOURS (LANES / 4)

typedef struct { /* a tile: low columns, then high ones, each in sixteens; weights + 8 */
    uint8_t at[2 * LANES / 16][FOURS][64];
} FN(Opened);

/* Transpose 16 vectors of 16 items. */
INLINE void FN(transpose)(const __m512i from[16], uint8_t (*to)[64]) {
    __m512i pairs[16], fours[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(from[i], from[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(from[i], from[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) /* item 4q + j of from[i] to from[i + 3]: quarter q of j */
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + 2 + j]);
            fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + 2 + j]);
        }
    for (int j = 0; j < 4; j++) {
        const __m512i even = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
        const __m512i odd = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xDD);
        const __m512i later_even = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
        const __m512i later_odd = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xDD);
        _mm512_storeu_si512(to[j], _mm512_shuffle_i32x4(even, later_even, 0x88));
        _mm512_storeu_si512(to[4 + j], _mm512_shuffle_i32x4(odd, later_odd, 0x88));
        _mm512_storeu_si512(to[8 + j], _mm512_shuffle_i32x4(even, later_even, 0xDD));
        _mm512_storeu_si512(to[12 + j], _mm512_shuffle_i32x4(odd, later_odd, 0xDD));
    }
}

static void FN(open_tile)(const int8_t *w, ptrdiff_t vectors, FN(Opened) * out) {
    const __m512i flip = _mm512_set1_epi8((char)0x88), low = _mm512_set1_epi8(15);
    const ptrdiff_t sixteens = (vectors + 15) / 16;
    for (ptrdiff_t s = 0; s < sixteens; s++)
        for (int i = 0; i < STEPS; i++) {
            __m512i halves[2][16];
            for (int v = 0; v < 16; v++) {
                const ptrdiff_t from = 16 * s + v < vectors ? 16 * s + v : vectors - 1;
                const __m512i both = _mm512_loadu_si512(w + from * LANES + 64 * i);
                halves[0][v] = _mm512_ternarylogic_epi32(both, flip, low, 0x28);
                halves[1][v] = _mm512_ternarylogic_epi32(_mm512_srli_epi32(both, 4), flip, low,
                                                         0x28);
            }
            for (int half = 0; half < 2; half++)
                FN(transpose)(halves[half], out->at[half * sixteens + s] + 16 * i);
        }
}

/* sum[r][c] += the dot of fours `from` to `end` of x[r] with 16 columns w[c]; `rows` <= 4 and
   `sixteens` <= 4 are constants where this is expanded. */
INLINE void FN(opened_fours)(const int rows, const int sixteens, Rows x,
                             const uint8_t (*w)[FOURS][64], ptrdiff_t from, ptrdiff_t end,
                             __m512i sum[4][4]) {
    for (ptrdiff_t k = from; k < end; k++)
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x.at + r * x.stride + 4 * k, 4);
            const __m512i lanes = _mm512_set1_epi32(four);
            for (int c = 0; c < sixteens; c++)
                sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], _mm512_loadu_si512(w[c][k]), lanes);
        }
}

/* `sixteens` times 16 columns of sums; `eight` is 8 * sum(x) of each row's groups. */
INLINE void FN(opened_columns)(const int rows, const int sixteens, Rows x,
                               const uint8_t (*w)[FOURS][64], ptrdiff_t groups,
                               const int32_t (*eight)[MOST_GROUPS], ptrdiff_t column,
                               int32_t (*sums)[MOST_GROUPS][PACKED]) {
    for (ptrdiff_t g = 0; g < groups; g++) {
        __m512i sum[4][4];
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < sixteens; c++) sum[r][c] = _mm512_setzero_si512();
        FN(opened_fours)(rows, sixteens, x, w, g * FOURS / groups, (g + 1) * FOURS / groups, sum);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < sixteens; c++)
                _mm512_storeu_si512(sums[r][g] + column + 16 * c,
                                    _mm512_sub_epi32(sum[r][c], _mm512_set1_epi32(eight[r][g])));
    }
}

INLINE int32_t FN(lane_total)(const int8_t *x, ptrdiff_t n) {
    int32_t total = 0;
    for (ptrdiff_t i = 0; i < n; i++) total += x[i];
    return total;
}

/* A last sixteen that is not full writes into columns that are written later, or that nobody
   reads. */
INLINE void FN(opened_rows)(const int rows, Rows x, const FN(Opened) * tile, ptrdiff_t vectors,
                            ptrdiff_t groups, int32_t (*sums)[MOST_GROUPS][PACKED]) {
    const ptrdiff_t sixteens = (vectors + 15) / 16, group = LANES / groups;
    int32_t eight[4][MOST_GROUPS];
    for (int r = 0; r < rows; r++)
        for (ptrdiff_t g = 0; g < groups; g++)
            eight[r][g] = 8 * FN(lane_total)((int8_t *)x.at + r * x.stride + g * group, group);
    for (int half = 0; half < 2; half++) {
        const uint8_t(*w)[FOURS][64] = tile->at + half * sixteens;
        const ptrdiff_t first = half * vectors;
        ptrdiff_t s = 0;
        for (; s + 4 <= sixteens; s += 4)
            FN(opened_columns)(rows, 4, x, w + s, groups, (const int32_t(*)[MOST_GROUPS])eight,
                               first + 16 * s, sums);
        for (; s < sixteens; s++)
            FN(opened_columns)(rows, 1, x, w + s, groups, (const int32_t(*)[MOST_GROUPS])eight,
                               first + 16 * s, sums);
    }
}

/* sums[r][g][c] = the dot of group g of x[r] with column c of a tile w, for up to PACKED_ROWS rows.
   `tile` is the same one opened; NULL if it was not worth it. */
static void FN(packed_rows)(ptrdiff_t rows, Rows x, const int8_t *w, const FN(Opened) * tile,
                            ptrdiff_t vectors, ptrdiff_t groups,
                            int32_t (*sums)[MOST_GROUPS][PACKED]) {
    if (tile == NULL)
        for (ptrdiff_t r = 0; r < rows; r++)
            FN(packed_sums)((const int8_t *)x.at + r * x.stride, w, vectors, groups, sums[r]);
    else if (rows == 4) FN(opened_rows)(4, x, tile, vectors, groups, sums);
    else if (rows == 3) FN(opened_rows)(3, x, tile, vectors, groups, sums);
    else if (rows == 2) FN(opened_rows)(2, x, tile, vectors, groups, sums);
    else FN(opened_rows)(1, x, tile, vectors, groups, sums);
}
