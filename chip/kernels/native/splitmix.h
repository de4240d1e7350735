/* splitmix64, as in chip/kernels/splitmix.py: the hash of logits, and of synthetic weights. */

#ifndef LPU_SPLITMIX_H
#define LPU_SPLITMIX_H

#include "kernels.h"

#define GOLDEN 0x9E3779B97F4A7C15u

INLINE uint64_t splitmix64(uint64_t z) { /* the finaliser */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

#endif
