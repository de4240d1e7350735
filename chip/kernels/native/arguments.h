/* From Python arguments to plain pointers: buffers with checked type, rank and strides. */

#ifndef LPU_ARGUMENTS_H
#define LPU_ARGUMENTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

#define VIEWS 12

typedef struct Views { /* some buffers of a call; they never move before its end */
    struct Views *before;
    int used;
    Py_buffer views[VIEWS];
} Views;

typedef struct Held { /* memory of a call */
    struct Held *before;
    max_align_t bytes[];
} Held;

/* The buffers and the memory of one call. It starts zeroed, and `release` gives everything back at
   its end. A binding itself frees nothing: it just returns, also where it refuses. */
typedef struct {
    Views first, *last;
    Held *held;
} Call;

void *hold(Call *call, Py_ssize_t n, size_t size); /* n zeroed items; NULL: MemoryError is set */
void release(Call *call);

enum { READ = 0, WRITE = 1, LOOSE = 2 /* 1-D may be strided */ };

/* Take an array. `kinds` lists the format letters allowed: b int8, e fp16, f fp32, l int64. NULL
   with ValueError set, which `what` names, for another type or rank or lanes that are not
   contiguous. */
const Py_buffer *take(Call *call, PyObject *o, const char *what, const char *kinds, int rank,
                      int mode);

/* Take a sequence of 2-D segments [rows, n] fp16. 0 with an exception set. */
int take_segments(Call *call, PyObject *list, Py_ssize_t rows, Segments *out);

/* Take the caches of KV heads [tokens, hd], with scales [tokens] unless `scales` is NULL; *tokens
   becomes the least of all. */
Cache *take_caches(Call *call, PyObject *list, PyObject *scales, const char *kind, Py_ssize_t heads,
                   Py_ssize_t hd, int mode, Py_ssize_t *tokens);

int check_positions(const Py_buffer *positions, Py_ssize_t rows, Py_ssize_t tokens);
int check_shape(const Py_buffer *view, const char *what, Py_ssize_t rows, Py_ssize_t columns);
int check_padded(const Py_buffer *view, Py_ssize_t rows, Py_ssize_t n);
int check_length(const Py_buffer *view, const char *what, Py_ssize_t n);
PyObject *shape_of(const Py_buffer *view);
int is_half(const Py_buffer *view);
Rows rows_of(const Py_buffer *view);
Heads heads_of(const Py_buffer *view);

/* Run a statement without the interpreter's lock. */
#define UNLOCKED(...)              \
    do {                           \
        Py_BEGIN_ALLOW_THREADS     \
        __VA_ARGS__;               \
        Py_END_ALLOW_THREADS       \
    } while (0)

/* Turn a kernel's count into a Python int, or into None; a count of -1 is MemoryError. */
PyObject *counted(long saturated);
PyObject *done(long failed);

#endif
