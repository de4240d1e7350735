/* Start-up: synthetic weights (synthetic.py), quantising checkpoints (quant.py), and a reader that
   measures how fast memory is. */

#include "splitmix.h"

/* Each byte of -128 becomes 0. A byte is 0x80 if its low seven bits are zero and its high bit is
   set. */
INLINE uint64_t FN(without_most_negative)(uint64_t z) {
    const uint64_t high = 0x8080808080808080u;
    return z & ~(high & ~((z & ~high) + ~high));
}

/* Write row `row` of the stream `key`: k values, each 320 of them `tile_stride` bytes further on.
   */
static void FN(synthetic)(uint64_t key, uint64_t row, ptrdiff_t k, int8_t *out,
                          ptrdiff_t tile_stride) {
    uint64_t words[LANES / 8];
    for (ptrdiff_t at = 0; at < k; at += LANES, out += tile_stride) {
        const uint64_t first = (row << 32) + (uint64_t)at / 8;
        for (int i = 0; i < LANES / 8; i++) {
            const uint64_t z = (first + (uint64_t)i) * GOLDEN + key;
            words[i] = FN(without_most_negative)(splitmix64(z));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            words[i] = __builtin_bswap64(words[i]);
#endif
        }
        memcpy(out, words, (size_t)(k - at < LANES ? k - at : LANES));
    }
}

/* q = rint(w / scale) with scale = max|w| / most, which is returned. Where w has an infinity or NaN,
   that is returned and q is left as it is. */
static float FN(quantize_row)(ptrdiff_t k, const float *w, int8_t *q, float most) {
    const float a = max_abs(w, k);
    if (!(a <= 3.4028234663852886e38f)) return a;
    if (a < 0x1p-100f) {
        memset(q, 0, (size_t)k);
        return 0.0f;
    }
    const float scale = a / most;
    for (ptrdiff_t i = 0; i < k; i++)
        q[i] = (int8_t)(int32_t)clamp(round_even(w[i] / scale), -most, most);
    return scale;
}

/* Put the low four bits of each value of a row into the low (shift 0) or high half (shift 4) of
   bytes, each 320 of them `tile_stride` bytes further on; the last tile is filled with zeros. The
   other half stays. -8 becomes 0. */
static void FN(pack_row)(ptrdiff_t k, const int8_t *q, int8_t *out, ptrdiff_t tile_stride,
                         int shift) {
    const uint8_t kept = (uint8_t)(0xF0 >> shift);
    for (ptrdiff_t at = 0; at < k; at += LANES, q += LANES, out += tile_stride) {
        const ptrdiff_t n = k - at < LANES ? k - at : LANES;
        uint8_t *to = (uint8_t *)out;
        for (ptrdiff_t i = 0; i < n; i++) {
            const uint8_t value = (uint8_t)q[i] & 15;
            to[i] = (uint8_t)((to[i] & kept) | (value == 8 ? 0 : value) << shift);
        }
        for (ptrdiff_t i = n; i < LANES; i++) to[i] &= kept;
    }
}

/* Sum 64-bit words of `bytes` (a multiple of 512), to measure memory. Eight streams are read at
   once, because one alone stalls at every page. */
static uint64_t FN(read_words)(const char *at, ptrdiff_t bytes) {
    typedef uint64_t Words __attribute__((vector_size(32)));
    const ptrdiff_t part = bytes / 8;
    Words sums[8] = {{0}}, low, high;
    uint64_t total = 0;
    for (ptrdiff_t i = 0; i < part; i += 64)
#pragma GCC unroll 8
        for (int stream = 0; stream < 8; stream++) {
            memcpy(&low, at + stream * part + i, 32);
            memcpy(&high, at + stream * part + i + 32, 32);
            sums[stream] += low + high;
        }
    for (int j = 0; j < 32; j++) total += sums[j / 4][j % 4];
    return total;
}
