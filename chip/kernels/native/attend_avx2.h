/* q.k and P.V in int8 with AVX2, and `products`, which the matrix kernels use as well.

   maddubs(|w|, x * sign(w)) adds two products in int16: at most 2 * 128 * 127 < 2^15, so nothing
   saturates for x in [-127, 127] and any w. madd with ones widens to int32. */

INLINE __m256i FN(load)(const int8_t *at) { return _mm256_loadu_si256((const __m256i *)at); }

INLINE __m256i FN(products)(__m256i size, __m256i sign, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, sign));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE int32_t FN(total)(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return _mm_cvtsi128_si32(s);
}

INLINE __m128i FN(total4)(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
}

/* out[t] = q . k[t] for four tokens. */
INLINE void FN(score4)(const int8_t *q, Rows k, ptrdiff_t hd, int32_t *out) {
    const int8_t *rows[4];
    __m256i sum[4];
    int32_t rest[4] = {0};
    ptrdiff_t i = 0;
    for (int t = 0; t < 4; t++) {
        rows[t] = (const int8_t *)k.at + t * k.stride;
        sum[t] = _mm256_setzero_si256();
    }
    for (; i + 32 <= hd; i += 32) {
        const __m256i lanes = FN(load)(q + i);
        for (int t = 0; t < 4; t++) {
            const __m256i v = FN(load)(rows[t] + i);
            sum[t] = _mm256_add_epi32(sum[t], FN(products)(_mm256_abs_epi8(v), v, lanes));
        }
    }
    for (; i < hd; i++)
        for (int t = 0; t < 4; t++) rest[t] += (int16_t)q[i] * (int16_t)rows[t][i];
    const __m128i whole = FN(total4)(sum[0], sum[1], sum[2], sum[3]);
    const __m128i more = _mm_loadu_si128((const __m128i *)rest);
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(whole, more));
}

/* out[t] = q . k[t] for t < tokens; q in [-127, 127], k any bytes. */
static void FN(scores_i8)(const int8_t *q, Rows k, ptrdiff_t tokens, ptrdiff_t hd, int32_t *out) {
    ptrdiff_t t = 0;
    for (; t + 4 <= tokens; t += 4, k.at += 4 * k.stride) FN(score4)(q, k, hd, out + t);
    for (; t < tokens; t++, k.at += k.stride) {
        const int8_t *row = (const int8_t *)k.at;
        out[t] = 0;
        for (ptrdiff_t i = 0; i < hd; i++) out[t] += (int16_t)q[i] * (int16_t)row[i];
    }
}

/* sum += p[t] * v[t][d] for 32 lanes d and four tokens t. The four bytes of a lane are interleaved
   into one int32, where `products` adds their products. */
INLINE void FN(pv4)(int32_t p4, const int8_t *const v[4], __m256i sum[4]) {
    const __m256i p = _mm256_set1_epi32(p4);
    const __m256i a = FN(load)(v[0]), b = FN(load)(v[1]), c = FN(load)(v[2]), d = FN(load)(v[3]);
    const __m256i ab[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
    const __m256i cd[2] = {_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d)};
    for (int i = 0; i < 2; i++) {
        const __m256i low = _mm256_unpacklo_epi16(ab[i], cd[i]);
        const __m256i high = _mm256_unpackhi_epi16(ab[i], cd[i]);
        const __m256i one = FN(products)(_mm256_abs_epi8(low), low, p);
        const __m256i two = FN(products)(_mm256_abs_epi8(high), high, p);
        sum[2 * i] = _mm256_add_epi32(sum[2 * i], one);
        sum[2 * i + 1] = _mm256_add_epi32(sum[2 * i + 1], two);
    }
}

/* out[d] = sum over t of p[t] * v[t][d]; p in [-127, 127], v any bytes. */
static void FN(pv_i8)(const int8_t *p, Rows v, ptrdiff_t tokens, ptrdiff_t hd, int32_t *out) {
    const ptrdiff_t whole = tokens & ~(ptrdiff_t)3, wide = hd & ~(ptrdiff_t)31;
    memset(out, 0, (size_t)hd * 4);
    for (ptrdiff_t d = 0; d < wide; d += 32) {
        __m256i sum[4];
        for (int i = 0; i < 4; i++) sum[i] = _mm256_setzero_si256();
        for (ptrdiff_t t = 0; t < whole; t += 4) {
            const int8_t *rows[4];
            int32_t p4;
            memcpy(&p4, p + t, 4);
            for (int i = 0; i < 4; i++) rows[i] = (const int8_t *)v.at + (t + i) * v.stride + d;
            FN(pv4)(p4, rows, sum);
        }
        for (int i = 0; i < 4; i++) { /* unpacking works in halves of 128 bits */
            _mm_storeu_si128((__m128i *)(out + d + 4 * i), _mm256_castsi256_si128(sum[i]));
            _mm_storeu_si128((__m128i *)(out + d + 16 + 4 * i),
                             _mm256_extracti128_si256(sum[i], 1));
        }
    }
    for (ptrdiff_t t = 0; t < tokens; t++) {
        const int8_t *row = (const int8_t *)v.at + t * v.stride;
        for (ptrdiff_t d = t < whole ? wide : 0; d < hd; d++)
            out[d] += (int16_t)p[t] * (int16_t)row[d];
    }
}
