/* Attention over the cache, in two passes: q.k with softmax, then P.V. A row works on `seen` slots
   from `base` on, all of which are written. Of these, those from `from` to `to`, counted from
   `base`, are masked: what is in front of its window, or, where that goes around the end of a ring,
   what is between its ends. Whole tiles in front of the window would count nothing. */
typedef struct {
    ptrdiff_t base, seen, from, to;
} FN(Span);

INLINE FN(Span) FN(span)(const Attention *a, ptrdiff_t r) {
    const int64_t position = a->positions[r];
    const ptrdiff_t end = (ptrdiff_t)(a->ring ? position % a->ring : position) + 1;
    const ptrdiff_t before = a->window - end; /* tokens of the window in front of slot 0 */
    if (position >= end && before > 0)
        return (FN(Span)){.base = 0, .seen = a->ring, .from = end, .to = a->ring - before};
    const ptrdiff_t first = a->window && before < 0 ? -before : 0, base = first / LANES * LANES;
    return (FN(Span)){.base = base, .seen = end - base, .from = 0, .to = first - base};
}

INLINE void FN(exp_scores)(float *scores, ptrdiff_t n, float most) {
    for (ptrdiff_t t = 0; t < n; t++) scores[t] = exp_f32(scores[t] - most);
}

/* Softmax of scores [n], in place: minus the row maximum, times the sum's reciprocal. Those from
   `from` to `to` < n are masked; `sink` is a score that only counts to the sum. */
INLINE void FN(softmax)(float *scores, ptrdiff_t n, ptrdiff_t from, ptrdiff_t to,
                        const float *sink) {
    float most = largest(scores + to, n - to);
    if (from) {
        const float newest = largest(scores, from);
        most = newest > most ? newest : most;
    }
    if (sink && *sink > most) most = *sink;
    FN(exp_scores)(scores, from, most);
    for (ptrdiff_t t = from; t < to; t++) scores[t] = 0.0f;
    FN(exp_scores)(scores + to, n - to, most);
    float sum = lane_sum(scores, n);
    if (sink) sum += exp_f32(*sink - most);
    const float scale = recip_f32(sum);
    for (ptrdiff_t t = 0; t < n; t++) scores[t] = scores[t] * scale;
}

INLINE void FN(cap_scores)(const Attention *a, float *scores, ptrdiff_t n) {
    if (a->cap == 0.0f) return;
    for (ptrdiff_t t = 0; t < n; t++) scores[t] = capped_f32(scores[t], a->cap, a->per_cap);
}

/* A cache's values from one token on. */
INLINE Rows FN(from_token)(const Cache *cache, ptrdiff_t t) {
    return (Rows){cache->values.at + t * cache->values.stride, cache->values.stride};
}

static long FN(attend_i8)(const Attention *a, ptrdiff_t r, ptrdiff_t j, const Scratch *scratch) {
    const Cache *k = a->k + a->kv_of[j], *v = a->v + a->kv_of[j];
    const FN(Span) span = FN(span)(a, r);
    const ptrdiff_t base = span.base, seen = span.seen;
    const int8_t *q = (const int8_t *)(a->q.at + r * a->q.row + j * a->q.head);
    const float sq = ((const float *)(a->sq.at + r * a->sq.stride))[j];
    float values[MAX_HEAD], *scores = scratch->scores;
    int32_t *acc = scratch->sums;
    int8_t *p = scratch->p;
    FN(scores_i8)(q, FN(from_token)(k, base), seen, a->hd, acc);
    for (ptrdiff_t t = 0; t < seen; t++) scores[t] = (float)acc[t] * (sq * k->scales[base + t]);
    FN(cap_scores)(a, scores, seen);
    FN(softmax)(scores, seen, span.from, span.to, a->sinks ? a->sinks + j : NULL);
    for (ptrdiff_t t = 0; t < seen; t++) scores[t] = scores[t] * v->scales[base + t];
    const float scale = quantise(scores, seen, p);
    FN(pv_i8)(p, FN(from_token)(v, base), seen, a->hd, acc);
    for (ptrdiff_t d = 0; d < a->hd; d++) values[d] = (float)acc[d] * scale;
    return FN(put)(values, a->hd, a->out, r, j * a->hd, a->half);
}

/* total[d] += p [n] . v [n, hd] for one tile of n <= 320 tokens; token t in partial t mod 16. */
static void FN(pv_f16)(const uint16_t *p, Rows v, ptrdiff_t n, ptrdiff_t hd, float *total) {
    double sums[PARTIALS][LANES], wide[LANES], lanes[LANES];
    memset(sums, 0, sizeof sums);
    FN(widen_f64)(p, wide, n);
    for (ptrdiff_t t = 0; t < n; t++) {
        double *sum = sums[t % PARTIALS];
        FN(widen_f64)((const uint16_t *)(v.at + t * v.stride), lanes, hd);
        for (ptrdiff_t d = 0; d < hd; d++) sum[d] += wide[t] * lanes[d];
    }
    for (int width = PARTIALS / 2; width >= 1; width /= 2)
        for (int j = 0; j < width; j++)
            for (ptrdiff_t d = 0; d < hd; d++) sums[j][d] += sums[j + width][d];
    for (ptrdiff_t d = 0; d < hd; d++) total[d] += (float)sums[0][d];
}

static long FN(attend_f16)(const Attention *a, ptrdiff_t r, ptrdiff_t j, const Scratch *scratch) {
    const Cache *k = a->k + a->kv_of[j], *v = a->v + a->kv_of[j];
    const FN(Span) span = FN(span)(a, r);
    const ptrdiff_t base = span.base, seen = span.seen;
    const Rows keys = FN(from_token)(k, base);
    double wide[LANES];
    float values[LANES] = {0}, *scores = scratch->scores;
    uint16_t *p = scratch->p;
    FN(widen_f64)((const uint16_t *)(a->q.at + r * a->q.row + j * a->q.head), wide, a->hd);
    for (ptrdiff_t t = 0; t < seen; t++) {
        const uint16_t *key = (const uint16_t *)(keys.at + t * keys.stride);
        scores[t] = FN(tile_dot)(wide, key, a->hd) * a->scale;
    }
    FN(cap_scores)(a, scores, seen);
    FN(softmax)(scores, seen, span.from, span.to, a->sinks ? a->sinks + j : NULL);
    FN(narrow)(scores, p, seen);
    for (ptrdiff_t t = 0; t < seen; t += LANES) {
        const Rows part = FN(from_token)(v, base + t);
        FN(pv_f16)(p + t, part, seen - t < LANES ? seen - t : LANES, a->hd, values);
    }
    return FN(put)(values, a->hd, a->out, r, j * a->hd, a->half);
}

static ptrdiff_t FN(longest)(const Attention *a) {
    int64_t last = 0;
    for (ptrdiff_t r = 0; r < a->rows; r++) last = a->positions[r] > last ? a->positions[r] : last;
    return a->ring && last >= a->ring ? a->ring : (ptrdiff_t)last + 1;
}

/* Attend for every row and head, one KV head after another so that its cache stays near. `attend`
   is a constant where this is expanded. */
INLINE long FN(attend_all)(const Attention *a,
                           long (*attend)(const Attention *, ptrdiff_t, ptrdiff_t,
                                          const Scratch *)) {
    const size_t tokens = (size_t)FN(longest)(a), width = tokens > MAX_HEAD ? tokens : MAX_HEAD;
    const Scratch scratch = {malloc(tokens * 4), malloc(width * 4), malloc(tokens * 2)};
    const int there = scratch.scores && scratch.sums && scratch.p;
    long saturated = there ? 0 : -1;
    for (ptrdiff_t g = 0; there && g < a->n_kv; g++)
        for (ptrdiff_t r = 0; r < a->rows; r++)
            for (ptrdiff_t j = 0; j < a->n_q; j++)
                if (a->kv_of[j] == g) saturated += attend(a, r, j, &scratch);
    free(scratch.scores);
    free(scratch.sums);
    free(scratch.p);
    return saturated;
}

static long FN(attention_i8)(const Attention *a) { return FN(attend_all)(a, FN(attend_i8)); }

static long FN(attention_f16)(const Attention *a) { return FN(attend_all)(a, FN(attend_f16)); }
