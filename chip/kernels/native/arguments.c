#include "arguments.h"

void *hold(Call *call, Py_ssize_t n, size_t size) {
    Held *held = NULL;
    if ((size_t)n <= (PY_SSIZE_T_MAX - sizeof *held) / size)
        held = PyMem_Calloc(1, sizeof *held + (size_t)n * size);
    if (held == NULL) return PyErr_NoMemory();
    held->before = call->held;
    call->held = held;
    return held->bytes;
}

void release(Call *call) {
    for (Views *at = call->last ? call->last : &call->first; at; at = at->before)
        while (at->used > 0) PyBuffer_Release(at->views + --at->used);
    while (call->held) {
        Held *held = call->held;
        call->held = held->before;
        PyMem_Free(held);
    }
}

/* The views with room for one more buffer; NULL with an exception set. */
static Views *room(Call *call) {
    Views *last = call->last ? call->last : &call->first;
    if (last->used < VIEWS) return last;
    Views *more = hold(call, 1, sizeof *more);
    if (more == NULL) return NULL;
    more->before = last;
    return call->last = more;
}

static const char *type_name(const char *format) {
    static const char *const names[][2] = {
        {"b", "int8"},    {"e", "float16"}, {"f", "float32"}, {"d", "float64"}, {"l", "int64"},
        {"q", "int64"},   {"B", "uint8"},   {"h", "int16"},   {"H", "uint16"},  {"i", "int32"},
        {"I", "uint32"},  {"L", "uint64"},  {"Q", "uint64"},  {"?", "bool"},
    };
    for (size_t i = 0; format && i < sizeof names / sizeof *names; i++)
        if (!strcmp(format, names[i][0])) return names[i][1];
    return format ? format : "uint8";
}

static int kind_matches(const Py_buffer *view, const char *kinds) {
    const char *format = view->format;
    if (format != NULL && format[0] == '=') format++; /* NumPy's mark for misaligned arrays */
    if (format == NULL || format[0] == 0 || format[1] != 0) return 0;
    const char letter = format[0] == 'q' ? 'l' : format[0];
    return strchr(kinds, letter) != NULL && (letter != 'l' || view->itemsize == 8);
}

static int laid_out_well(const Py_buffer *view, int mode) {
    const int last = view->ndim - 1;
    uintptr_t bits = (uintptr_t)view->buf;
    if (view->len == 0) return 1;
    for (int i = 0; i <= last; i++)
        if (view->shape[i] > 1) bits |= (uintptr_t)view->strides[i];
    if (bits % (uintptr_t)view->itemsize) return 0;
    return (mode & LOOSE) || view->shape[last] == 1 || view->strides[last] == view->itemsize;
}

const Py_buffer *take(Call *call, PyObject *o, const char *what, const char *kinds, int rank,
                      int mode) {
    const int flags = mode & WRITE ? PyBUF_RECORDS : PyBUF_RECORDS_RO;
    Views *views = room(call);
    if (views == NULL) return NULL;
    Py_buffer *view = views->views + views->used;
    if (PyObject_GetBuffer(o, view, flags) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_ValueError))
            PyErr_Format(PyExc_ValueError, "%s: wanted an array, got %R", what, Py_TYPE(o));
        return NULL;
    }
    views->used++;
    if (!kind_matches(view, kinds)) {
        const char first[2] = {kinds[0], 0}, second[2] = {kinds[1], 0};
        PyErr_Format(PyExc_ValueError, "%s: wanted %s%s%s, got %s", what, type_name(first),
                     kinds[1] ? " or " : "", kinds[1] ? type_name(second) : "",
                     type_name(view->format));
        return NULL;
    }
    if (view->ndim != rank) {
        PyErr_Format(PyExc_ValueError, "%s: wanted %d dimensions, got %d", what, rank, view->ndim);
        return NULL;
    }
    if (!laid_out_well(view, mode)) {
        PyErr_Format(PyExc_ValueError, "%s: wanted contiguous, aligned lanes", what);
        return NULL;
    }
    return view;
}

PyObject *shape_of(const Py_buffer *view) {
    PyObject *shape = PyTuple_New(view->ndim);
    for (int i = 0; shape && i < view->ndim; i++) {
        PyObject *n = PyLong_FromSsize_t(view->shape[i]);
        if (n == NULL) Py_CLEAR(shape);
        else PyTuple_SET_ITEM(shape, i, n);
    }
    return shape;
}

int check_shape(const Py_buffer *view, const char *what, Py_ssize_t rows, Py_ssize_t columns) {
    if (view->shape[0] == rows && view->shape[1] == columns) return 1;
    PyErr_Format(PyExc_ValueError, "%s: wanted shape (%zd, %zd), got (%zd, %zd)", what, rows,
                 columns, view->shape[0], view->shape[1]);
    return 0;
}

int check_padded(const Py_buffer *view, Py_ssize_t rows, Py_ssize_t n) {
    if (view->shape[0] == rows && n <= view->shape[1] && view->shape[1] % LANES == 0) return 1;
    PyErr_Format(PyExc_ValueError, "padded output of %zd x %zd: got shape (%zd, %zd)", rows, n,
                 view->shape[0], view->shape[1]);
    return 0;
}

int check_length(const Py_buffer *view, const char *what, Py_ssize_t n) {
    if (view->shape[0] == n) return 1;
    PyErr_Format(PyExc_ValueError, "%s: wanted %zd, got %zd", what, n, view->shape[0]);
    return 0;
}

int check_positions(const Py_buffer *positions, Py_ssize_t rows, Py_ssize_t tokens) {
    const int64_t *at = positions->buf;
    int ok = positions->shape[0] == rows && tokens > 0;
    for (Py_ssize_t r = 0; ok && r < rows; r++) ok = at[r] >= 0 && at[r] < tokens;
    if (ok) return 1;
    PyObject *list = PyList_New(positions->shape[0]);
    for (Py_ssize_t r = 0; list && r < positions->shape[0]; r++) {
        PyObject *n = PyLong_FromLongLong(at[r]);
        if (n == NULL) Py_CLEAR(list);
        else PyList_SET_ITEM(list, r, n);
    }
    if (list)
        PyErr_Format(PyExc_ValueError, "positions: wanted %zd in [0, %zd), got %R", rows, tokens,
                     list);
    Py_XDECREF(list);
    return 0;
}

int is_half(const Py_buffer *view) { return view->itemsize == 2; }

Rows rows_of(const Py_buffer *view) { return (Rows){view->buf, view->strides[0]}; }

Heads heads_of(const Py_buffer *view) {
    return (Heads){view->buf, view->strides[0], view->strides[1]};
}

int take_segments(Call *call, PyObject *list, Py_ssize_t rows, Segments *out) {
    PyObject *items = PySequence_Fast(list, "segments: wanted a sequence");
    if (items == NULL) return 0;
    const Py_ssize_t parts = PySequence_Fast_GET_SIZE(items);
    Segment *segments = hold(call, parts, sizeof *segments);
    int ok = segments != NULL;
    *out = (Segments){segments, parts, 0};
    for (Py_ssize_t i = 0; ok && i < parts; i++) {
        const Py_buffer *view =
            take(call, PySequence_Fast_GET_ITEM(items, i), "segment", "e", 2, READ);
        ok = view != NULL;
        if (ok && view->shape[0] != rows) {
            PyErr_Format(PyExc_ValueError, "segment: wanted %zd rows, got shape (%zd, %zd)", rows,
                         view->shape[0], view->shape[1]);
            ok = 0;
        }
        if (!ok) break;
        segments[i] = (Segment){rows_of(view), view->shape[1]};
        out->width += view->shape[1];
    }
    Py_DECREF(items);
    return ok;
}

static int take_cache(Call *call, PyObject *values, PyObject *scales, const char *kind,
                      Py_ssize_t hd, int mode, Py_ssize_t *tokens, Cache *out) {
    const Py_buffer *view = take(call, values, "cache", kind, 2, mode);
    if (view == NULL) return 0;
    if (view->shape[1] != hd) {
        PyErr_Format(PyExc_ValueError, "cache: wanted %zd lanes, got shape (%zd, %zd)", hd,
                     view->shape[0], view->shape[1]);
        return 0;
    }
    out->values = rows_of(view);
    if (view->shape[0] < *tokens) *tokens = view->shape[0];
    if (scales == NULL) return 1;
    view = take(call, scales, "cache scales", "f", 1, mode);
    if (view == NULL) return 0;
    out->scales = view->buf;
    if (view->shape[0] < *tokens) *tokens = view->shape[0];
    return 1;
}

Cache *take_caches(Call *call, PyObject *list, PyObject *scales, const char *kind, Py_ssize_t heads,
                   Py_ssize_t hd, int mode, Py_ssize_t *tokens) {
    PyObject *items = PySequence_Fast(list, "cache: wanted a sequence");
    PyObject *more = items && scales ? PySequence_Fast(scales, "scales: wanted a sequence") : NULL;
    Cache *caches = items && (more || !scales) ? hold(call, heads, sizeof *caches) : NULL;
    int ok = caches != NULL;
    if (ok && (PySequence_Fast_GET_SIZE(items) != heads ||
               (more && PySequence_Fast_GET_SIZE(more) != heads))) {
        PyErr_Format(PyExc_ValueError, "cache: wanted the same number of heads, %zd, everywhere",
                     heads);
        ok = 0;
    }
    for (Py_ssize_t i = 0; ok && i < heads; i++)
        ok = take_cache(call, PySequence_Fast_GET_ITEM(items, i),
                        more ? PySequence_Fast_GET_ITEM(more, i) : NULL, kind, hd, mode, tokens,
                        caches + i);
    Py_XDECREF(items);
    Py_XDECREF(more);
    return ok ? caches : NULL;
}

PyObject *counted(long saturated) {
    return saturated < 0 ? PyErr_NoMemory() : PyLong_FromLong(saturated);
}

PyObject *done(long failed) { return failed < 0 ? PyErr_NoMemory() : Py_NewRef(Py_None); }
