/* The code of dot_avx512.h on intrinsics written in plain C after Intel's definitions, so that its
   arithmetic is tested on every machine. Chosen only by name, never as the best. */

#include "vmath.h"

typedef struct {
    union {
        int8_t i8[64];
        uint8_t u8[64];
        uint32_t u32[16];
    };
} Vector512;

INLINE Vector512 emulated_zero(void) {
    Vector512 v;
    memset(&v, 0, sizeof v);
    return v;
}

INLINE Vector512 emulated_load(const void *at) {
    Vector512 v;
    memcpy(&v, at, sizeof v);
    return v;
}

INLINE void emulated_store(void *to, Vector512 v) { memcpy(to, &v, sizeof v); }

INLINE Vector512 emulated_set1_epi8(char byte) {
    Vector512 v;
    memset(&v, byte, sizeof v);
    return v;
}

INLINE Vector512 emulated_dpbusd(Vector512 sum, Vector512 a, Vector512 b) {
    for (int i = 0; i < 16; i++)
        for (int j = 4 * i; j < 4 * i + 4; j++) sum.u32[i] += (uint32_t)(a.u8[j] * b.i8[j]);
    return sum;
}

INLINE Vector512 emulated_add(Vector512 a, Vector512 b) {
    for (int i = 0; i < 16; i++) a.u32[i] += b.u32[i];
    return a;
}

INLINE Vector512 emulated_sub(Vector512 a, Vector512 b) {
    for (int i = 0; i < 16; i++) a.u32[i] -= b.u32[i];
    return a;
}

/* In each quarter of 128 bits, the low or high half of a and b, item by item: a, b, a, b. */
INLINE Vector512 emulated_unpack(Vector512 a, Vector512 b, int item, int high) {
    Vector512 v;
    for (int quarter = 0; quarter < 64; quarter += 16)
        for (int i = 0; i < 8; i += item) {
            const int from = quarter + 8 * high + i, to = quarter + 2 * i;
            memcpy(v.u8 + to, a.u8 + from, (size_t)item);
            memcpy(v.u8 + to + item, b.u8 + from, (size_t)item);
        }
    return v;
}

/* Bit by bit, the bit of `table` that a, b and c number: a the highest. */
INLINE Vector512 emulated_ternarylogic(Vector512 a, Vector512 b, Vector512 c, int table) {
    Vector512 v = emulated_zero();
    for (int i = 0; i < 16; i++)
        for (int row = 0; row < 8; row++)
            if (table >> row & 1)
                v.u32[i] |= (row & 4 ? a.u32[i] : ~a.u32[i]) & (row & 2 ? b.u32[i] : ~b.u32[i]) &
                            (row & 1 ? c.u32[i] : ~c.u32[i]);
    return v;
}

/* Two quarters of 128 bits of a, then two of b: those that `which` has in two bits each. */
INLINE Vector512 emulated_shuffle_quarters(Vector512 a, Vector512 b, int which) {
    Vector512 v;
    for (int i = 0; i < 4; i++)
        memcpy(v.u8 + 16 * i, (i < 2 ? &a : &b)->u8 + 16 * (which >> 2 * i & 3), 16);
    return v;
}

INLINE Vector512 emulated_srav(Vector512 a, Vector512 shifts) {
    for (int i = 0; i < 16; i++) a.u32[i] = (uint32_t)((int32_t)a.u32[i] >> shifts.u32[i]);
    return a;
}

INLINE Vector512 emulated_srli(Vector512 a, int by) {
    for (int i = 0; i < 16; i++) a.u32[i] >>= by;
    return a;
}

INLINE Vector512 emulated_set1_epi32(int32_t value) {
    Vector512 v;
    for (int i = 0; i < 16; i++) v.u32[i] = (uint32_t)value;
    return v;
}

INLINE int32_t emulated_reduce_add(Vector512 v) {
    uint32_t total = 0;
    for (int i = 0; i < 16; i++) total += v.u32[i];
    return (int32_t)total;
}

#define __m512i Vector512
#define _mm512_setzero_si512 emulated_zero
#define _mm512_loadu_si512 emulated_load
#define _mm512_set1_epi8 emulated_set1_epi8
#define _mm512_dpbusd_epi32 emulated_dpbusd
#define _mm512_reduce_add_epi32 emulated_reduce_add
#define _mm512_add_epi32 emulated_add
#define _mm512_sub_epi32 emulated_sub
#define _mm512_unpacklo_epi32(a, b) emulated_unpack(a, b, 4, 0)
#define _mm512_unpackhi_epi32(a, b) emulated_unpack(a, b, 4, 1)
#define _mm512_unpacklo_epi64(a, b) emulated_unpack(a, b, 8, 0)
#define _mm512_unpackhi_epi64(a, b) emulated_unpack(a, b, 8, 1)
#define _mm512_storeu_si512 emulated_store
#define _mm512_ternarylogic_epi32 emulated_ternarylogic
#define _mm512_shuffle_i32x4 emulated_shuffle_quarters
#define _mm512_srav_epi32 emulated_srav
#define _mm512_srli_epi32 emulated_srli
#define _mm512_set1_epi32 emulated_set1_epi32
#define _mm_prefetch(at, hint) ((void)(at))

#define FN(name) name##_emulated
#define ISA_NAME "avx512-emulated"

#include "half_portable.h"
#include "attend_portable.h"
#include "dot_avx512.h"
#include "body.h"
