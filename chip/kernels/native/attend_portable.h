/* q.k and P.V in int8 in plain C. */

INLINE int32_t FN(dot)(const int8_t *x, const int8_t *w, ptrdiff_t n) {
    int32_t sum = 0;
    for (ptrdiff_t i = 0; i < n; i++) sum += (int16_t)x[i] * (int16_t)w[i];
    return sum;
}

/* out[t] = q . k[t] for t < tokens. */
static void FN(scores_i8)(const int8_t *q, Rows k, ptrdiff_t tokens, ptrdiff_t hd, int32_t *out) {
    for (ptrdiff_t t = 0; t < tokens; t++)
        out[t] = FN(dot)(q, (const int8_t *)k.at + t * k.stride, hd);
}

/* out[d] = sum over t of p[t] * v[t][d]. */
static void FN(pv_i8)(const int8_t *p, Rows v, ptrdiff_t tokens, ptrdiff_t hd, int32_t *out) {
    memset(out, 0, (size_t)hd * 4);
    for (ptrdiff_t t = 0; t < tokens; t++) {
        const int8_t *row = (const int8_t *)v.at + t * v.stride;
        for (ptrdiff_t d = 0; d < hd; d++) out[d] += (int16_t)p[t] * (int16_t)row[d];
    }
}
