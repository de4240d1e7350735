/* AVX-512 VNNI for the matrix products; the rest as with AVX2, which the compiler may widen.
   module.c chooses this table only where the machine has all of ISA_TARGET. */

#include "vmath.h"

#if defined(LPU_X86)
#include <immintrin.h>

#define ISA_TARGET "avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(ISA_TARGET))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

#define FN(name) name##_avx512
#define ISA_NAME "avx512-vnni"

#include "half_avx2.h"
#include "attend_avx2.h"
#include "dot_avx512.h"
#include "body.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
