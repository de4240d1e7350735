/* Products of activations with tiled weights. A block is 320 columns, a tile 320 lanes of K. */

#define ROWS_AT_ONCE 128 /* rows whose int32 sums are held: 160 KB */
#define PANEL_ROWS 16    /* rows that stay in L1 while a block's columns stream past */

/* Write n finished values to row r of y, fp32 or fp16; returns how many saturated. */
INLINE long FN(put)(const float *values, ptrdiff_t n, Rows y, ptrdiff_t r, ptrdiff_t at, int half) {
    char *row = y.at + r * y.stride;
    if (half) return FN(narrow)(values, (uint16_t *)row + at, n);
    memcpy((float *)row + at, values, (size_t)n * 4);
    return 0;
}

INLINE long FN(dequantise)(const Matmul *m, ptrdiff_t r, ptrdiff_t first, ptrdiff_t columns,
                           const int32_t *acc) {
    float values[LANES];
    const float sx = m->sx[r], *sw = m->sw + first;
    for (ptrdiff_t c = 0; c < columns; c++) values[c] = ((float)acc[c] * sx) * sw[c];
    return FN(put)(values, columns, m->y, r, first, m->half);
}

static long FN(matmul_i8)(const Matmul *m) {
    const ptrdiff_t some = m->rows < ROWS_AT_ONCE ? m->rows : ROWS_AT_ONCE, tiles = m->kp / LANES;
    const ptrdiff_t step = m->rows == 1 ? 1 : PANEL_TILES;
    int32_t(*acc)[LANES] = malloc((size_t)some * sizeof *acc);
    long saturated = 0;
    if (acc == NULL) return -1;
    for (ptrdiff_t first = 0; first < m->columns; first += LANES) {
        const ptrdiff_t columns = m->columns - first < LANES ? m->columns - first : LANES;
        const int8_t *w = (const int8_t *)m->w + first * m->kp;
        for (ptrdiff_t top = 0; top < m->rows; top += some) {
            const ptrdiff_t rows = m->rows - top < some ? m->rows - top : some;
            memset(acc, 0, (size_t)rows * sizeof *acc);
            for (ptrdiff_t t = 0; t < tiles; t += step)
                for (ptrdiff_t r = 0; r < rows; r += PANEL_ROWS) {
                    const Rows x = {m->x.at + (top + r) * m->x.stride + t * LANES, m->x.stride};
                    FN(panel)(rows - r < PANEL_ROWS ? rows - r : PANEL_ROWS, x, columns,
                              w + t * columns * LANES, tiles - t < step ? tiles - t : step,
                              acc + r);
                }
            for (ptrdiff_t r = 0; r < rows; r++)
                saturated += FN(dequantise)(m, top + r, first, columns, acc[r]);
        }
    }
    free(acc);
    return saturated;
}

/* total[c] += fp32 of each group's sums times its scales, group by group. */
INLINE void FN(add_scaled)(const Matmul *m, ptrdiff_t first, ptrdiff_t columns, ptrdiff_t group,
                           ptrdiff_t groups, const int32_t (*sums)[PACKED], float *total) {
    for (ptrdiff_t g = 0; g < groups; g++) {
        const float *sw =
            (const float *)((const char *)m->sw + (group + g) * m->sw_stride) + first;
        for (ptrdiff_t c = 0; c < columns; c++) total[c] += (float)sums[g][c] * sw[c];
    }
}

static long FN(matmul_i4)(const Matmul *m) {
    const ptrdiff_t some = m->rows < ROWS_AT_ONCE ? m->rows : ROWS_AT_ONCE, tiles = m->kp / LANES;
    const ptrdiff_t groups = LANES / m->group;
    const int opens = m->rows >= WORTH_OPENING;
    float(*total)[PACKED] = malloc((size_t)some * sizeof *total);
    int32_t(*sums)[MOST_GROUPS][PACKED] = malloc(PACKED_ROWS * sizeof *sums);
    FN(Opened) *opened = opens ? malloc(sizeof *opened) : NULL;
    const int there = total && sums && (opened || !opens);
    long saturated = there ? 0 : -1;
    for (ptrdiff_t first = 0; there && first < m->columns; first += PACKED) {
        const ptrdiff_t columns = m->columns - first < PACKED ? m->columns - first : PACKED;
        const ptrdiff_t vectors = (columns + 1) / 2;
        const int8_t *block = (const int8_t *)m->w + first / 2 * m->kp;
        for (ptrdiff_t top = 0; top < m->rows; top += some) {
            const ptrdiff_t rows = m->rows - top < some ? m->rows - top : some;
            memset(total, 0, (size_t)rows * sizeof *total);
            for (ptrdiff_t t = 0; t < tiles; t++) {
                const int8_t *w = block + t * vectors * LANES;
                if (opens) FN(open_tile)(w, vectors, opened);
                for (ptrdiff_t r = 0; r < rows; r += PACKED_ROWS) {
                    const Rows x = {m->x.at + (top + r) * m->x.stride + t * LANES, m->x.stride};
                    const ptrdiff_t few = rows - r < PACKED_ROWS ? rows - r : PACKED_ROWS;
                    FN(packed_rows)(few, x, w, opened, vectors, groups, sums);
                    for (ptrdiff_t i = 0; i < few; i++)
                        FN(add_scaled)(m, first, columns, t * groups, groups,
                                       (const int32_t(*)[PACKED])sums[i], total[r + i]);
                }
            }
            for (ptrdiff_t r = 0; r < rows; r++) {
                for (ptrdiff_t c = 0; c < columns; c++) total[r][c] *= m->sx[top + r];
                saturated += FN(put)(total[r], columns, m->y, top + r, first, m->half);
            }
        }
    }
    free(total);
    free(sums);
    free(opened);
    return saturated;
}

INLINE float FN(half_tree)(double *p) {
    for (int width = 8; width >= 1; width /= 2)
        for (int j = 0; j < width; j++) p[j] += p[j + width];
    return (float)p[0];
}

/* x [n] in fp64 . w [n] fp16, n <= 320, in the order of `matmul_f16` in twin.py. */
INLINE float FN(tile_dot)(const double *x, const uint16_t *w, ptrdiff_t n) {
    double p[PARTIALS] = {0};
    const ptrdiff_t whole = n & ~(ptrdiff_t)(PARTIALS - 1);
    FN(dot_steps)(p, x, w, whole);
    if (whole < n) {
        uint16_t rest[PARTIALS] = {0};
        double wide[PARTIALS] = {0};
        memcpy(rest, w + whole, (size_t)(n - whole) * 2);
        memcpy(wide, x + whole, (size_t)(n - whole) * 8);
        FN(dot_steps)(p, wide, rest, PARTIALS); /* +0 onto a sum that is never -0 */
    }
    return FN(half_tree)(p);
}

static long FN(matmul_f16)(const Matmul *m) {
    const ptrdiff_t some = m->rows < 16 ? m->rows : 16, tiles = m->kp / LANES;
    double *wide = malloc((size_t)some * LANES * sizeof *wide);
    float(*acc)[LANES] = malloc((size_t)some * sizeof *acc);
    long saturated = 0;
    for (ptrdiff_t first = 0; acc && wide && first < m->columns; first += LANES) {
        const ptrdiff_t columns = m->columns - first < LANES ? m->columns - first : LANES;
        const uint16_t *block = (const uint16_t *)m->w + first * m->kp;
        for (ptrdiff_t top = 0; top < m->rows; top += some) {
            const ptrdiff_t rows = m->rows - top < some ? m->rows - top : some;
            memset(acc, 0, (size_t)rows * sizeof *acc);
            for (ptrdiff_t t = 0; t < tiles; t++) {
                for (ptrdiff_t r = 0; r < rows; r++) {
                    const char *row = m->x.at + (top + r) * m->x.stride;
                    FN(widen_f64)((const uint16_t *)row + t * LANES, wide + r * LANES, LANES);
                }
                for (ptrdiff_t c = 0; c < columns; c++) {
                    const uint16_t *w = block + (t * columns + c) * LANES;
                    for (ptrdiff_t r = 0; r < rows; r++)
                        acc[r][c] += FN(tile_dot)(wide + r * LANES, w, LANES);
                }
            }
            for (ptrdiff_t r = 0; r < rows; r++)
                saturated += FN(put)(acc[r], columns, m->y, top + r, first, m->half);
        }
    }
    if (acc == NULL || wide == NULL) saturated = -1;
    free(acc);
    free(wide);
    return saturated;
}
