/* fp16 in plain C: exact widening, rounding to nearest even that saturates at 65504.
   The including file defines FN. */

INLINE float FN(from_half)(uint16_t h) {
    const int32_t sign = (int32_t)((uint32_t)(h & 0x8000) << 16), body = h & 0x7FFF;
    /* Exponent moved by 2^112 (exact, subnormals included); infinity and NaN keep theirs. */
    const float x = from_bits(body << 13) * 0x1p112f;
    const int32_t special = 0x7F800000 | (body << 13);
    return from_bits(sign | (body >= 0x7C00 ? special : to_bits(x)));
}

INLINE uint16_t FN(to_half)(float x) { /* |x| <= 65504, or NaN */
    const int32_t bits = to_bits(x), body = bits & 0x7FFFFFFF;
    const int32_t odd = (body >> 13) & 1;
    const int32_t normal = (body - 0x38000000 + 0xFFF + odd) >> 13;
    const int32_t tiny = to_bits(from_bits(body) + 0.5f) - 0x3F000000; /* a grid of 2^-24 */
    int32_t h = body < 0x38800000 ? tiny : normal;
    h = body > 0x7F800000 ? 0x7E00 : h;
    return (uint16_t)(h | ((bits >> 16) & 0x8000));
}

static void FN(widen)(const uint16_t *h, float *x, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) x[i] = FN(from_half)(h[i]);
}

static long FN(narrow)(const float *x, uint16_t *h, ptrdiff_t n) {
    int32_t saturated = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float v = x[i];
        saturated += (to_bits(v) & 0x7FFFFFFF) > 0x477FE000 && v == v;
        const float low = v < -65504.0f ? -65504.0f : v;
        h[i] = FN(to_half)(low > 65504.0f ? 65504.0f : low);
    }
    return saturated;
}

static void FN(widen_f64)(const uint16_t *h, double *x, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) x[i] = FN(from_half)(h[i]);
}

INLINE void FN(dot_steps)(double *p, const double *x, const uint16_t *w, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i + PARTIALS <= n; i += PARTIALS)
        for (int j = 0; j < PARTIALS; j++) p[j] += x[i + j] * (double)FN(from_half)(w[i + j]);
}
