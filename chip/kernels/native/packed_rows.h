/* Products of many rows with int4 weights, one row after another: a tile is unpacked for each. */

#define PACKED_ROWS 1
#define WORTH_OPENING PTRDIFF_MAX

typedef struct {
    char nothing;
} FN(Opened);

static void FN(open_tile)(const int8_t *w, ptrdiff_t vectors, FN(Opened) * out) {
    (void)w, (void)vectors, (void)out;
}

/* See dot_avx512.h. */
static void FN(packed_rows)(ptrdiff_t rows, Rows x, const int8_t *w, const FN(Opened) * tile,
                            ptrdiff_t vectors, ptrdiff_t groups,
                            int32_t (*sums)[MOST_GROUPS][PACKED]) {
    (void)rows, (void)tile;
    FN(packed_sums)((const int8_t *)x.at, w, vectors, groups, sums[0]);
}
