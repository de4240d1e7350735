/* Row by row: norm, gather, add, gate, function, rotate. */

/* Make one row of values, all n lanes of the output; `from` is a Norm or a Gather. */
typedef void FN(MakeRow)(const void *from, ptrdiff_t r, float *y);

/* Write each row that `make` makes, quantised or rounded to fp16, then zeros. `make` is a constant
   where this is expanded. */
INLINE long FN(padded)(const Padded *out, FN(MakeRow) make, const void *from) {
    const ptrdiff_t n = out->n, behind = out->kp - n;
    float *y = malloc((size_t)n * 4 + 4);
    long saturated = 0;
    if (y == NULL) return -1;
    for (ptrdiff_t r = 0; r < out->rows; r++) {
        char *row = out->q.at + r * out->q.stride;
        make(from, r, y);
        if (out->s) {
            out->s[r] = quantise(y, n, (int8_t *)row);
            memset(row + n, 0, (size_t)behind);
        } else {
            saturated += FN(narrow)(y, (uint16_t *)row, n);
            memset(row + n * 2, 0, (size_t)behind * 2);
        }
    }
    free(y);
    return saturated;
}

/* What RMSNorm multiplies a row by. */
INLINE float FN(norm_scale)(const float *x, ptrdiff_t n, float eps) {
    return rsqrt_f32(lane_sum_of_squares(x, n) * (float)(1.0 / (double)n) + eps);
}

/* y = (x * rsqrt(mean(x^2) + eps)) * gamma */
INLINE void FN(norm_row)(const void *from, ptrdiff_t r, float *y) {
    const Norm *norm = from;
    const ptrdiff_t n = norm->out.n;
    const float *x = (const float *)(norm->x.at + r * norm->x.stride);
    const float scale = FN(norm_scale)(x, n, norm->eps);
    for (ptrdiff_t i = 0; i < n; i++) y[i] = (x[i] * scale) * norm->gamma[i];
}

static void FN(head_norm)(const HeadNorm *norm) {
    const ptrdiff_t n = norm->n;
    for (ptrdiff_t r = 0; r < norm->rows; r++)
        for (ptrdiff_t j = 0; j < norm->heads; j++) {
            const float *x = (const float *)(norm->x.at + r * norm->x.stride) + j * n;
            float *y = (float *)(norm->y.at + r * norm->y.stride) + j * n;
            const float scale = FN(norm_scale)(x, n, norm->eps);
            for (ptrdiff_t i = 0; i < n; i++) y[i] = (x[i] * scale) * norm->gamma[i];
        }
}

static long FN(norm)(const Norm *norm) { return FN(padded)(&norm->out, FN(norm_row), norm); }

/* x = ((x - mean) * rsqrt(variance + eps)) * gamma + beta */
static void FN(layer_norm)(const LayerNorm *norm) {
    const ptrdiff_t n = norm->n;
    const float per = (float)(1.0 / (double)n);
    for (ptrdiff_t r = 0; r < norm->rows; r++) {
        float *x = (float *)(norm->x.at + r * norm->x.stride);
        const float mean = lane_sum(x, n) * per;
        for (ptrdiff_t i = 0; i < n; i++) x[i] -= mean;
        const float scale = rsqrt_f32(lane_sum_of_squares(x, n) * per + norm->eps);
        for (ptrdiff_t i = 0; i < n; i++)
            x[i] = (x[i] * scale) * norm->gamma[i] + norm->beta[i];
    }
}

INLINE void FN(whole_row)(const void *from, ptrdiff_t r, float *y) {
    const Whole *whole = from;
    memcpy(y, whole->x.at + r * whole->x.stride, (size_t)whole->out.n * 4);
}

static long FN(whole)(const Whole *w) { return FN(padded)(&w->out, FN(whole_row), w); }

INLINE void FN(gather_row)(const void *from, ptrdiff_t r, float *y) {
    const Segments *segments = &((const Gather *)from)->segments;
    for (ptrdiff_t p = 0; p < segments->parts; y += segments->at[p++].n) {
        const Segment *s = segments->at + p;
        FN(widen)((const uint16_t *)(s->rows.at + r * s->rows.stride), y, s->n);
    }
}

static long FN(gather_i8)(const Gather *g) { return FN(padded)(&g->out, FN(gather_row), g); }

static void FN(add)(ptrdiff_t rows, Rows x, const Segments *segments) {
    float wide[LANES];
    for (ptrdiff_t r = 0; r < rows; r++) {
        float *row = (float *)(x.at + r * x.stride);
        for (ptrdiff_t p = 0; p < segments->parts; row += segments->at[p++].n) {
            const Segment *s = segments->at + p;
            const uint16_t *delta = (const uint16_t *)(s->rows.at + r * s->rows.stride);
            for (ptrdiff_t at = 0; at < s->n; at += LANES) {
                const ptrdiff_t n = s->n - at < LANES ? s->n - at : LANES;
                FN(widen)(delta + at, wide, n);
                for (ptrdiff_t i = 0; i < n; i++) row[at + i] += wide[i];
            }
        }
    }
}

static long FN(add_norm)(const AddNorm *a) {
    const ptrdiff_t n = a->segments.width;
    const Gather gather = {.segments = a->segments};
    float *delta = malloc((size_t)n * 4 + 4);
    if (delta == NULL) return -1;
    for (ptrdiff_t r = 0; r < a->rows; r++) {
        float *x = (float *)(a->x.at + r * a->x.stride);
        FN(gather_row)(&gather, r, delta);
        const float scale = FN(norm_scale)(delta, n, a->eps);
        for (ptrdiff_t i = 0; i < n; i++) x[i] += (delta[i] * scale) * a->gamma[i];
    }
    free(delta);
    return 0;
}

static void FN(cap)(ptrdiff_t rows, ptrdiff_t n, Rows x, float cap, float per) {
    for (ptrdiff_t r = 0; r < rows; r++) {
        float *row = (float *)(x.at + r * x.stride);
        for (ptrdiff_t i = 0; i < n; i++) row[i] = capped_f32(row[i], cap, per);
    }
}

/* out = activation(gate) * up, for each gate. */
#define DEFINE_GATE(name)                                                              \
    static long FN(name)(ptrdiff_t rows, ptrdiff_t n, Rows gu, Rows out, int half) {   \
        float values[LANES];                                                           \
        long saturated = 0;                                                            \
        for (ptrdiff_t r = 0; r < rows; r++) {                                         \
            const float *gate = (const float *)(gu.at + r * gu.stride), *up = gate + n; \
            for (ptrdiff_t at = 0; at < n; at += LANES) {                              \
                const ptrdiff_t count = n - at < LANES ? n - at : LANES;               \
                for (ptrdiff_t i = 0; i < count; i++)                                  \
                    values[i] = name##_f32(gate[at + i], up[at + i]);                  \
                saturated += FN(put)(values, count, out, r, at, half);                 \
            }                                                                          \
        }                                                                              \
        return saturated;                                                              \
    }

GATES(DEFINE_GATE)
#undef DEFINE_GATE

/* y = x + bias */
static long FN(add_bias)(ptrdiff_t rows, ptrdiff_t n, Rows x, const float *bias, Rows y,
                         int half) {
    float values[LANES];
    long saturated = 0;
    for (ptrdiff_t r = 0; r < rows; r++) {
        const float *from = (const float *)(x.at + r * x.stride);
        for (ptrdiff_t at = 0; at < n; at += LANES) {
            const ptrdiff_t count = n - at < LANES ? n - at : LANES;
            for (ptrdiff_t i = 0; i < count; i++) values[i] = from[at + i] + bias[at + i];
            saturated += FN(put)(values, count, y, r, at, half);
        }
    }
    return saturated;
}

#define DEFINE_APPLY(name)                                                             \
    static long FN(name)(ptrdiff_t rows, ptrdiff_t n, Rows x, Rows out, int half) {    \
        float values[LANES];                                                           \
        long saturated = 0;                                                            \
        for (ptrdiff_t r = 0; r < rows; r++) {                                         \
            const float *from = (const float *)(x.at + r * x.stride);                  \
            for (ptrdiff_t at = 0; at < n; at += LANES) {                              \
                const ptrdiff_t count = n - at < LANES ? n - at : LANES;               \
                for (ptrdiff_t i = 0; i < count; i++)                                  \
                    values[i] = name##_f32(from[at + i]);                              \
                saturated += FN(put)(values, count, out, r, at, half);                 \
            }                                                                          \
        }                                                                              \
        return saturated;                                                              \
    }

APPLIED(DEFINE_APPLY)
#undef DEFINE_APPLY

INLINE void FN(rotate)(const Rope *p, ptrdiff_t r, const float *x, float *y) {
    const ptrdiff_t half = p->hd / 2;
    const float *cosine = (const float *)(p->rope.at + r * p->rope.row);
    const float *sine = (const float *)((const char *)cosine + p->rope.head);
    for (ptrdiff_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        y[i] = a * cosine[i] - b * sine[i];
        y[i + half] = b * cosine[i] + a * sine[i];
    }
}

/* Write a head: int8, with its scale times `factor` in *scale; fp16 where `scale` is NULL. */
INLINE long FN(put_head)(const float *x, ptrdiff_t hd, char *to, float *scale, float factor) {
    if (scale == NULL) return FN(narrow)(x, (uint16_t *)to, hd);
    *scale = quantise(x, hd, (int8_t *)to) * factor;
    return 0;
}

static long FN(rope)(const Rope *p) {
    float *rotated = malloc((size_t)p->hd * 4 + 4);
    long saturated = 0;
    if (rotated == NULL) return -1;
    for (ptrdiff_t r = 0; r < p->rows; r++) {
        const float *x = (const float *)(p->qkv.at + r * p->qkv.stride);
        float *sq = p->sq.at ? (float *)(p->sq.at + r * p->sq.stride) : NULL;
        const ptrdiff_t t = p->positions[r];
        for (ptrdiff_t j = 0; j < p->n_q; j++, x += p->hd) {
            char *q = p->q.at + r * p->q.row + j * p->q.head;
            if (p->rotates) FN(rotate)(p, r, x, rotated);
            saturated += FN(put_head)(p->rotates ? rotated : x, p->hd, q, sq ? sq + j : NULL,
                                      p->scale);
        }
        for (ptrdiff_t j = 0; j < 2 * p->n_kv; j++, x += p->hd) {
            const int key = j < p->n_kv, turns = key && p->rotates;
            const Cache *cache = key ? p->k + j : p->v + (j - p->n_kv);
            char *to = cache->values.at + t * cache->values.stride;
            float *scale = cache->scales ? cache->scales + t : NULL;
            if (turns) FN(rotate)(p, r, x, rotated);
            saturated += FN(put_head)(turns ? rotated : x, p->hd, to, scale, 1.0f);
        }
    }
    free(rotated);
    return saturated;
}
