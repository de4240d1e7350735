/* A mixture of experts: which ones a row has, and the sum of what they give. */

/* Mark the `chosen` largest of x [n], ties to the lowest. */
INLINE void FN(mark)(const float *x, ptrdiff_t n, ptrdiff_t chosen, char *marked) {
    memset(marked, 0, (size_t)n);
    for (ptrdiff_t c = 0; c < chosen; c++) {
        ptrdiff_t best = 0;
        while (marked[best]) best++;
        for (ptrdiff_t i = best + 1; i < n; i++)
            if (!marked[i] && x[i] > x[best]) best = i;
        marked[best] = 1;
    }
}

static long FN(route)(const Route *p) {
    const ptrdiff_t n = p->experts;
    float *w = malloc((size_t)n * 4);
    char *marked = malloc((size_t)n);
    const int there = w && marked;
    for (ptrdiff_t r = 0; there && r < p->rows; r++) {
        const float *x = (const float *)(p->x.at + r * p->x.stride);
        int32_t *e = (int32_t *)(p->e.at + r * p->e.stride);
        float *g = (float *)(p->g.at + r * p->g.stride);
        ptrdiff_t c = 0;
        FN(mark)(x, n, p->chosen, marked);
        for (ptrdiff_t i = 0; i < n; i++)
            if (marked[i]) e[c++] = (int32_t)i;
        if (p->after) {
            for (c = 0; c < p->chosen; c++) g[c] = x[e[c]];
            FN(softmax)(g, p->chosen, 0, 0, NULL);
            continue;
        }
        memcpy(w, x, (size_t)n * 4);
        FN(softmax)(w, n, 0, 0, NULL);
        for (c = 0; c < p->chosen; c++) g[c] = w[e[c]];
        const float scale = recip_f32(lane_sum(g, p->chosen));
        for (c = 0; c < p->chosen; c++) g[c] = g[c] * scale;
    }
    free(w);
    free(marked);
    return there ? 0 : -1;
}

static long FN(weighted_sum)(const WeightedSum *p) {
    float values[LANES];
    long saturated = 0;
    for (ptrdiff_t r = 0; r < p->rows; r++) {
        const float *g = (const float *)(p->g.at + r * p->g.stride);
        for (ptrdiff_t at = 0; at < p->n; at += LANES) {
            const ptrdiff_t count = p->n - at < LANES ? p->n - at : LANES;
            for (ptrdiff_t i = 0; i < count; i++) values[i] = 0.0f;
            for (ptrdiff_t c = 0; c < p->parts; c++) {
                const float *y = (const float *)(p->y.at + r * p->y.row + c * p->y.head) + at;
                for (ptrdiff_t i = 0; i < count; i++) values[i] += g[c] * y[i];
            }
            saturated += FN(put)(values, count, p->out, r, at, p->half);
        }
    }
    return saturated;
}
