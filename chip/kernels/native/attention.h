/* Attention over the cache: two passes over the tokens a row may see, never the others. */

/* scores [n] -> softmax weights, in place. */
INLINE void FN(softmax)(float *scores, ptrdiff_t n) {
    const float most = largest(scores, n);
    for (ptrdiff_t t = 0; t < n; t++) scores[t] = exp_f32(scores[t] - most);
    const float scale = recip_f32(lane_sum(scores, n));
    for (ptrdiff_t t = 0; t < n; t++) scores[t] = scores[t] * scale;
}

static long FN(attend_i8)(const Attention *a, ptrdiff_t r, ptrdiff_t j, Scratch scratch) {
    const Cache *k = a->k + a->kv_of[j], *v = a->v + a->kv_of[j];
    const ptrdiff_t seen = a->positions[r] + 1;
    const int8_t *q = (const int8_t *)(a->q.at + r * a->q.row + j * a->q.head);
    const float sq = ((const float *)(a->sq.at + r * a->sq.stride))[j];
    float values[MAX_HEAD], *scores = scratch.scores;
    int32_t *acc = scratch.sums;
    int8_t *p = scratch.weights;
    FN(scores_i8)(q, k->values, seen, a->hd, acc);
    for (ptrdiff_t t = 0; t < seen; t++) scores[t] = (float)acc[t] * (sq * k->scales[t]);
    FN(softmax)(scores, seen);
    for (ptrdiff_t t = 0; t < seen; t++) scores[t] = scores[t] * v->scales[t];
    const float scale = quantise(scores, seen, p);
    FN(weigh_i8)(p, v->values, seen, a->hd, acc);
    for (ptrdiff_t d = 0; d < a->hd; d++) values[d] = (float)acc[d] * scale;
    return FN(put)(values, a->hd, a->out, r, j * a->hd, a->half);
}

/* total[d] += the tile p [n] . v [n, hd], token t in partial t mod 16. */
static void FN(weigh_f16)(const uint16_t *p, Rows v, ptrdiff_t n, ptrdiff_t hd, float *total) {
    double sums[PARTIALS][LANES], weights[LANES], lanes[LANES];
    memset(sums, 0, sizeof sums);
    FN(spread)(p, weights, n);
    for (ptrdiff_t t = 0; t < n; t++) {
        double *sum = sums[t % PARTIALS];
        const double weight = weights[t];
        FN(spread)((const uint16_t *)(v.at + t * v.stride), lanes, hd);
        for (ptrdiff_t d = 0; d < hd; d++) sum[d] += weight * lanes[d];
    }
    for (int width = PARTIALS / 2; width >= 1; width /= 2)
        for (int j = 0; j < width; j++)
            for (ptrdiff_t d = 0; d < hd; d++) sums[j][d] += sums[j + width][d];
    for (ptrdiff_t d = 0; d < hd; d++) total[d] += (float)sums[0][d];
}

static long FN(attend_f16)(const Attention *a, ptrdiff_t r, ptrdiff_t j, Scratch scratch) {
    const Cache *k = a->k + a->kv_of[j], *v = a->v + a->kv_of[j];
    const ptrdiff_t seen = a->positions[r] + 1;
    double wide[LANES];
    float values[LANES] = {0}, *scores = scratch.scores;
    uint16_t *p = scratch.weights;
    FN(spread)((const uint16_t *)(a->q.at + r * a->q.row + j * a->q.head), wide, a->hd);
    for (ptrdiff_t t = 0; t < seen; t++) {
        const uint16_t *key = (const uint16_t *)(k->values.at + t * k->values.stride);
        scores[t] = FN(tile_dot)(wide, key, a->hd) * a->scale;
    }
    FN(softmax)(scores, seen);
    FN(narrow)(scores, p, seen);
    for (ptrdiff_t t = 0; t < seen; t += LANES) {
        const Rows part = {v->values.at + t * v->values.stride, v->values.stride};
        FN(weigh_f16)(p + t, part, seen - t < LANES ? seen - t : LANES, a->hd, values);
    }
    return FN(put)(values, a->hd, a->out, r, j * a->hd, a->half);
}

static ptrdiff_t FN(longest)(const Attention *a) {
    int64_t last = 0;
    for (ptrdiff_t r = 0; r < a->rows; r++) last = a->positions[r] > last ? a->positions[r] : last;
    return (ptrdiff_t)last + 1;
}

/* Attend with every row and head; `attend` is a constant where this is expanded. */
INLINE long FN(attend_all)(const Attention *a,
                           long (*attend)(const Attention *, ptrdiff_t, ptrdiff_t, Scratch)) {
    const size_t tokens = (size_t)FN(longest)(a), width = tokens > MAX_HEAD ? tokens : MAX_HEAD;
    const Scratch scratch = {malloc(tokens * 4), malloc(width * 4), malloc(tokens * 2)};
    const int there = scratch.scores && scratch.sums && scratch.weights;
    long saturated = there ? 0 : -1;
    for (ptrdiff_t g = 0; there && g < a->n_kv; g++) /* a head's cache stays near */
        for (ptrdiff_t r = 0; r < a->rows; r++)
            for (ptrdiff_t j = 0; j < a->n_q; j++)
                if (a->kv_of[j] == g) saturated += attend(a, r, j, scratch);
    free(scratch.scores);
    free(scratch.sums);
    free(scratch.weights);
    return saturated;
}

static long FN(attention_i8)(const Attention *a) { return FN(attend_all)(a, FN(attend_i8)); }

static long FN(attention_f16)(const Attention *a) { return FN(attend_all)(a, FN(attend_f16)); }
