/* fp16 with F16C: the conversions of half_portable.h, eight at a time. */

#define HALF_LIMIT _mm256_set1_ps(65504.0f)

INLINE __m256 FN(load_half)(const uint16_t *h) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)h));
}

INLINE int FN(narrow8)(__m256 x, uint16_t *h) {
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    const int over = _mm256_movemask_ps(_mm256_cmp_ps(size, HALF_LIMIT, _CMP_GT_OQ));
    const __m256 low = _mm256_max_ps(_mm256_sub_ps(_mm256_setzero_ps(), HALF_LIMIT), x);
    const __m256 kept = _mm256_min_ps(HALF_LIMIT, low); /* NaN in the second operand stays */
    _mm_storeu_si128((__m128i *)h, _mm256_cvtps_ph(kept, _MM_FROUND_TO_NEAREST_INT));
    return __builtin_popcount((unsigned)over);
}

static void FN(widen)(const uint16_t *h, float *x, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, FN(load_half)(h + i));
    if (i < n) {
        uint16_t rest[8] = {0};
        float wide[8];
        memcpy(rest, h + i, (size_t)(n - i) * 2);
        _mm256_storeu_ps(wide, FN(load_half)(rest));
        memcpy(x + i, wide, (size_t)(n - i) * 4);
    }
}

static long FN(narrow)(const float *x, uint16_t *h, ptrdiff_t n) {
    long saturated = 0;
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) saturated += FN(narrow8)(_mm256_loadu_ps(x + i), h + i);
    if (i < n) {
        float rest[8] = {0};
        uint16_t narrow[8];
        memcpy(rest, x + i, (size_t)(n - i) * 4);
        saturated += FN(narrow8)(_mm256_loadu_ps(rest), narrow);
        memcpy(h + i, narrow, (size_t)(n - i) * 2);
    }
    return saturated;
}

static void FN(widen_f64)(const uint16_t *h, double *x, ptrdiff_t n) {
    float wide[LANES];
    for (ptrdiff_t at = 0; at < n; at += LANES) {
        const ptrdiff_t count = n - at < LANES ? n - at : LANES;
        FN(widen)(h + at, wide, count);
        for (ptrdiff_t i = 0; i < count; i++) x[at + i] = wide[i];
    }
}

/* p[i mod 16] += x[i] * w[i] in order of i. Products are exact, so fusing them changes no bit. */
INLINE void FN(dot_steps)(double *p, const double *x, const uint16_t *w, ptrdiff_t n) {
    __m256d sum[4];
    for (int j = 0; j < 4; j++) sum[j] = _mm256_loadu_pd(p + 4 * j);
    for (ptrdiff_t i = 0; i + PARTIALS <= n; i += PARTIALS)
        for (int j = 0; j < 4; j++) {
            const __m128i h = _mm_loadl_epi64((const __m128i *)(w + i + 4 * j));
            const __m256d wide = _mm256_cvtps_pd(_mm_cvtph_ps(h));
            sum[j] = _mm256_fmadd_pd(_mm256_loadu_pd(x + i + 4 * j), wide, sum[j]);
        }
    for (int j = 0; j < 4; j++) _mm256_storeu_pd(p + 4 * j, sum[j]);
}
