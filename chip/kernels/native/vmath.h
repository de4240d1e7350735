/* The project's fp32 functions, line by line after chip/kernels/vmath.py: the same operations in
   the same order, without branches, so that loops over them become vector code with the same bits.

   rint adds and subtracts 1.5 * 2^23, which rounds to nearest even and is exact below 2^22. It
   gives +0 where NumPy's rint gives -0; no use here can tell them apart. */

#ifndef LPU_VMATH_H
#define LPU_VMATH_H

#include "kernels.h"

INLINE float from_bits(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE int32_t to_bits(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float round_even(float x) {
    const float magic = 12582912.0f;
    return (x + magic) - magic;
}

INLINE float clamp(float x, float low, float high) {
    x = x > low ? x : low; /* NaN becomes `low`; no caller may pass it */
    return x < high ? x : high;
}

INLINE float exp_f32(float x) {
    const float v = clamp(x, -104.5f, 88.72283172607422f);
    const float n = round_even(v * 1.4426950216293335f);
    const float r = (v - n * 0.693359375f) - n * -0.00021219444170128554f;
    float p = 0.00019790248188655823f;
    p = p * r + 0.0013944759266451001f;
    p = p * r + 0.008333497680723667f;
    p = p * r + 0.04166629537940025f;
    p = p * r + 0.1666666567325592f;
    p = p * r + 0.5f;
    const int32_t power = (int32_t)n, low = power >> 1, high = power - low;
    const float grown = 1.0f + (r + (r * r) * p);
    return (grown * from_bits((low + 127) * (1 << 23))) * from_bits((high + 127) * (1 << 23));
}

INLINE float rsqrt_f32(float x) {
    const int tiny = x < 0x1p-126f;
    const float v = x * (tiny ? 0x1p24f : 1.0f), half = v * 0.5f;
    float y = from_bits(0x5F3759DF - (to_bits(v) >> 1));
    y = y * (1.5f - (half * y) * y);
    y = y * (1.5f - (half * y) * y);
    y = y + y * (0.5f - (half * y) * y);
    return y * (tiny ? 0x1p12f : 1.0f);
}

INLINE float recip_f32(float x) {
    const float r = rsqrt_f32(x);
    return r * r;
}

INLINE float sigmoid_f32(float x) { return recip_f32(1.0f + exp_f32(-x)); }

INLINE float tanh_f32(float x) {
    const float size = from_bits(to_bits(x) & 0x7FFFFFFF), a = size < 32.0f ? size : 32.0f;
    const float z = a * a, w = z < 1.0f ? z : 1.0f;
    float p = 0.0021492023952305317f;
    p = p * w + -0.008184424601495266f;
    p = p * w + 0.021703645586967468f;
    p = p * w + -0.0539473220705986f;
    p = p * w + 0.13333210349082947f;
    p = p * w + -0.3333333134651184f;
    const float small = a + (a * z) * p;
    const float large = 1.0f - 2.0f * recip_f32(1.0f + exp_f32(a * 2.0f));
    const int32_t sign = to_bits(x) & (int32_t)0x80000000;
    return from_bits(to_bits(a < 0.625f ? small : large) | sign);
}

/* Functions of one value. */
INLINE float gelu_square(float x) {
    const float z = x * x;
    return z < 25.0f ? z : 25.0f;
}

INLINE float gelu_of(float x, float p) { return x * (tanh_f32(x * p) * 0.5f + 0.5f); }

INLINE float gelu_f32(float x) {
    const float z = gelu_square(x);
    float p = -5.710929684710209e-08f;
    p = p * z + 2.8124845812271815e-06f;
    p = p * z + -4.739814539789222e-05f;
    p = p * z + -5.7355486205779016e-05f;
    p = p * z + 0.03636491671204567f;
    p = p * z + 0.7978729605674744f;
    return gelu_of(x, p);
}

INLINE float gelu_tanh_f32(float x) {
    return gelu_of(x, 0.035677406936883926f * gelu_square(x) + 0.7978845834732056f);
}

/* cap * tanh(x / cap); `per` is 1 / cap. */
INLINE float capped_f32(float x, float cap, float per) { return tanh_f32(x * per) * cap; }

/* Gates: an activation of `gate`, times `up`. */
INLINE float silu_f32(float gate, float up) { return (gate * sigmoid_f32(gate)) * up; }

INLINE float geglu_f32(float gate, float up) { return gelu_tanh_f32(gate) * up; }

INLINE float clamped_silu_f32(float gate, float up) {
    const float g = gate < 7.0f ? gate : 7.0f, u = up < 7.0f ? up : 7.0f;
    return (g * sigmoid_f32(g * 1.702f)) * ((u > -7.0f ? u : -7.0f) + 1.0f);
}

/* Sum 320 lanes by a tree; overwrites them. */
INLINE float lane_tree(float *lanes) {
    for (int width = 160; width >= 5; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] = lanes[i] + lanes[i + width];
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + lanes[4];
}

INLINE float lane_sum(const float *x, ptrdiff_t n) {
    float lanes[LANES] = {0};
    ptrdiff_t at = 0;
    for (; at + LANES <= n; at += LANES)
        for (int i = 0; i < LANES; i++) lanes[i] += x[at + i];
    for (int i = 0; i < n - at; i++) lanes[i] += x[at + i];
    return lane_tree(lanes);
}

INLINE float lane_sum_of_squares(const float *x, ptrdiff_t n) {
    float lanes[LANES] = {0};
    ptrdiff_t at = 0;
    for (; at + LANES <= n; at += LANES)
        for (int i = 0; i < LANES; i++) lanes[i] += x[at + i] * x[at + i];
    for (int i = 0; i < n - at; i++) lanes[i] += x[at + i] * x[at + i];
    return lane_tree(lanes);
}

/* max |x|: non-negative floats order like their bits. */
INLINE float max_abs(const float *x, ptrdiff_t n) {
    int32_t most = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const int32_t bits = to_bits(x[i]) & 0x7FFFFFFF;
        most = bits > most ? bits : most;
    }
    return from_bits(most);
}

/* The largest of n >= 1 values. Which of -0 and +0 it is, is undefined. */
INLINE float largest(const float *x, ptrdiff_t n) {
    float most[16];
    ptrdiff_t i = 0;
    for (int j = 0; j < 16; j++) most[j] = x[0];
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
    for (; i < n; i++) most[0] = x[i] > most[0] ? x[i] : most[0];
    for (int j = 1; j < 16; j++) most[0] = most[j] > most[0] ? most[j] : most[0];
    return most[0];
}

/* Quantise n values into q and return their scale; the rule is in the head of twin.py. */
INLINE float quantise(const float *x, ptrdiff_t n, int8_t *q) {
    const float a = max_abs(x, n);
    if (a < 0x1p-100f) {
        memset(q, 0, (size_t)n);
        return 0.0f;
    }
    const float factor = 127.0f * recip_f32(a);
    for (ptrdiff_t i = 0; i < n; i++)
        q[i] = (int8_t)(int32_t)clamp(round_even(x[i] * factor), -127.0f, 127.0f);
    return a * (float)(1.0 / 127.0);
}

#endif
