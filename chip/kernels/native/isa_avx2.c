/* AVX2 with F16C and FMA. FMA is used only where products are exact. module.c chooses this table
   only where the machine has all three. */

#include "vmath.h"

#if defined(LPU_X86)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,fma")
#endif

#define FN(name) name##_avx2
#define ISA_NAME "avx2"

#include "half_avx2.h"
#include "attend_avx2.h"
#include "dot_avx2.h"
#include "body.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
