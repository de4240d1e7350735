/* Bindings: logit hash, synthetic weights, quantising checkpoints, reading memory. */

#include "module.h"
#include "splitmix.h"

static int to_u64(PyObject *o, uint64_t *out) {
    *out = PyLong_AsUnsignedLongLong(o);
    return !PyErr_Occurred();
}

static int to_size(PyObject *o, Py_ssize_t *out) {
    *out = PyLong_AsSsize_t(o);
    return !PyErr_Occurred();
}

PyObject *bind_logit_hash(Call *call, const Table *Py_UNUSED(table), Args a) {
    uint64_t first, sum = 0;
    const Py_buffer *logits;
    if (!to_u64(a[1], &first) || !(logits = take(call, a[0], "logits", "f", 1, LOOSE))) return NULL;
    const Rows x = rows_of(logits);
    for (Py_ssize_t i = 0; i < logits->shape[0]; i++) {
        uint32_t bits;
        memcpy(&bits, x.at + i * x.stride, 4);
        sum += splitmix64((first + (uint64_t)i) << 32 | bits);
    }
    return PyLong_FromUnsignedLongLong(sum);
}

/* out is [rows, k]. */
PyObject *bind_synthetic_rows(Call *call, const Table *table, Args a) {
    uint64_t key, first;
    const Py_buffer *out;
    if (!to_u64(a[0], &key) || !to_u64(a[1], &first) ||
        !(out = take(call, a[2], "output", "b", 2, WRITE)))
        return NULL;
    const Rows to = rows_of(out);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t r = 0; r < out->shape[0]; r++)
        table->synthetic(key, first + (uint64_t)r, out->shape[1], (int8_t *)to.at + r * to.stride,
                         LANES);
    Py_END_ALLOW_THREADS
    return done(0);
}

static int check_block(const Py_buffer *block, Py_ssize_t at, Py_ssize_t rows, Py_ssize_t k) {
    const Py_ssize_t tiles = block->shape[0];
    if (block->shape[2] == LANES && k >= 0 && k / LANES + (k % LANES > 0) == tiles && at >= 0 &&
        rows >= 0 && at <= block->shape[1] && rows <= block->shape[1] - at)
        return 1;
    const Py_ssize_t to = (Py_ssize_t)((size_t)at + (size_t)rows);
    PyErr_Format(PyExc_ValueError,
                 "tiled block of shape (%zd, %zd, %zd): no room for columns %zd to %zd of %zd "
                 "lanes",
                 tiles, block->shape[1], block->shape[2], at, to, k);
    return 0;
}

static int check_packed(const Py_buffer *block, Py_ssize_t at, Py_ssize_t rows, Py_ssize_t k) {
    const Py_ssize_t tiles = block->shape[0], room = 2 * block->shape[1];
    if (block->shape[2] == LANES && k / LANES + (k % LANES > 0) == tiles && at >= 0 &&
        at <= room && rows <= room - at)
        return 1;
    PyErr_Format(PyExc_ValueError,
                 "packed block of shape (%zd, %zd, %zd): no room for %zd columns of %zd lanes from "
                 "column %zd on",
                 tiles, block->shape[1], block->shape[2], rows, k, at);
    return 0;
}

/* block is [tiles, columns, 320]; `at` is the column of the first row. */
PyObject *bind_synthetic_tiled(Call *call, const Table *table, Args a) {
    uint64_t key, first;
    Py_ssize_t rows, k, at;
    const Py_buffer *block;
    if (!to_u64(a[0], &key) || !to_u64(a[1], &first) || !to_size(a[2], &rows) ||
        !to_size(a[3], &k) || !to_size(a[5], &at) ||
        !(block = take(call, a[4], "output", "b", 3, WRITE)) || !check_block(block, at, rows, k))
        return NULL;
    const Heads to = heads_of(block);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t r = 0; r < rows; r++) {
        int8_t *column = (int8_t *)to.at + (at + r) * to.head;
        table->synthetic(key, first + (uint64_t)r, k, column, to.row);
        if (k % LANES)
            memset(column + (k / LANES) * to.row + k % LANES, 0, (size_t)(LANES - k % LANES));
    }
    Py_END_ALLOW_THREADS
    return done(0);
}

/* q [rows, k], block [tiles, vectors, 320], both int8; `at` is the column of the first row. */
PyObject *bind_write_packed(Call *call, const Table *table, Args a) {
    const Py_buffer *q, *block;
    Py_ssize_t at;
    if (!to_size(a[2], &at) || !(q = take(call, a[0], "weights", "b", 2, READ)) ||
        !(block = take(call, a[1], "output", "b", 3, WRITE)))
        return NULL;
    const Py_ssize_t rows = q->shape[0], k = q->shape[1];
    if (!check_packed(block, at, rows, k)) return NULL;
    const Heads to = heads_of(block);
    const Rows from = rows_of(q);
    const Py_ssize_t half = block->shape[1];
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t r = 0; r < rows; r++)
        table->pack_row(k, (const int8_t *)from.at + r * from.stride,
                        (int8_t *)to.at + (at + r) % half * to.head, to.row,
                        at + r < half ? 0 : 4);
    Py_END_ALLOW_THREADS
    return done(0);
}

/* w [rows, k] fp32, q [rows, k] int8, scales [rows] -> the first row that is not finite, or -1. */
PyObject *bind_quantize_rows(Call *call, const Table *table, Args a) {
    const Py_buffer *w, *q, *scales;
    Py_ssize_t most;
    if (!to_size(a[3], &most) || !(w = take(call, a[0], "weights", "f", 2, READ)) ||
        !(q = take(call, a[1], "output", "b", 2, WRITE)) ||
        !(scales = take(call, a[2], "scales", "f", 1, WRITE)) ||
        !check_shape(q, "output", w->shape[0], w->shape[1]) ||
        !check_length(scales, "scales", w->shape[0]))
        return NULL;
    const Rows from = rows_of(w), to = rows_of(q);
    float *scale = scales->buf;
    Py_ssize_t bad = -1;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t r = 0; bad < 0 && r < w->shape[0]; r++) {
        const float *row = (const float *)(from.at + r * from.stride);
        scale[r] = table->quantize_row(w->shape[1], row, (int8_t *)to.at + r * to.stride,
                                       (float)most);
        if (!isfinite(scale[r])) bad = r;
    }
    Py_END_ALLOW_THREADS
    return PyLong_FromSsize_t(bad);
}

/* data [n] int8 -> the sum of its 64-bit words modulo 2^64. A last part of fewer than 512 bytes is
   left out. */
PyObject *bind_read_words(Call *call, const Table *table, Args a) {
    const Py_buffer *data = take(call, a[0], "data", "b", 1, READ);
    uint64_t sum;
    if (data == NULL) return NULL;
    UNLOCKED(sum = table->read_words(data->buf, data->shape[0] & ~(Py_ssize_t)511));
    return PyLong_FromUnsignedLongLong(sum);
}
