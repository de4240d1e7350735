/* Plain C, compiled for the machine's baseline. */

#include "vmath.h"

#define FN(name) name##_portable
#define ISA_NAME "portable"

#include "half_portable.h"
#include "attend_portable.h"
#include "dot_portable.h"
#include "body.h"
