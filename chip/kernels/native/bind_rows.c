/* Bindings: norm, gather, add, gate, functions, products. Texts of refusals are those of the twin. */

#include "module.h"

/* An output [rows, kp] with its scales: int8 with `scales`, fp16 where that is NULL. */
static int take_padded(Call *call, PyObject *output, PyObject *scales, const Py_buffer **q,
                       const Py_buffer **s) {
    *s = NULL;
    return (*q = take(call, output, "output", scales ? "b" : "e", 2, WRITE)) &&
           (!scales || (*s = take(call, scales, "scales", "f", 1, WRITE)));
}

static int check_output(const Py_buffer *q, const Py_buffer *s, Py_ssize_t rows, Py_ssize_t n) {
    return check_padded(q, rows, n) && (!s || check_length(s, "scales", rows));
}

static Padded padded_of(const Py_buffer *q, const Py_buffer *s, Py_ssize_t n) {
    return (Padded){.rows = q->shape[0], .n = n, .kp = q->shape[1], .q = rows_of(q),
                    .s = s ? s->buf : NULL};
}

static int check_weights(const Py_buffer *weights, Py_ssize_t n) {
    if (weights->shape[0] == n && n > 0) return 1;
    PyErr_Format(PyExc_ValueError, "norm: wanted %zd weights, got shape (%zd,)", n,
                 weights->shape[0]);
    return 0;
}

static PyObject *norm(Call *call, const Table *table, Args a, PyObject *scales) {
    const Py_buffer *x, *gamma, *q, *s;
    const double eps = PyFloat_AsDouble(a[2]);
    if (PyErr_Occurred() || !(x = take(call, a[0], "norm input", "f", 2, READ)) ||
        !(gamma = take(call, a[1], "norm weights", "f", 1, READ)) ||
        !take_padded(call, a[3], scales, &q, &s))
        return NULL;
    const Py_ssize_t h = x->shape[1];
    if (!check_weights(gamma, h)) return NULL;
    if (!check_output(q, s, x->shape[0], h)) return NULL;
    const Norm n = {.out = padded_of(q, s, h), .x = rows_of(x), .gamma = gamma->buf,
                    .eps = (float)eps};
    long saturated;
    UNLOCKED(saturated = table->norm(&n));
    return scales ? done(saturated) : counted(saturated);
}

PyObject *bind_norm_i8(Call *call, const Table *table, Args a) {
    return norm(call, table, a, a[4]);
}

PyObject *bind_norm_f16(Call *call, const Table *table, Args a) {
    return norm(call, table, a, NULL);
}

PyObject *bind_head_norm(Call *call, const Table *table, Args a) {
    const Py_buffer *x, *gamma, *y;
    const double eps = PyFloat_AsDouble(a[2]);
    if (PyErr_Occurred() || !(x = take(call, a[0], "norm input", "f", 2, READ)) ||
        !(gamma = take(call, a[1], "norm weights", "f", 1, READ)) ||
        !(y = take(call, a[3], "output", "f", 2, WRITE)))
        return NULL;
    const Py_ssize_t hd = gamma->shape[0], columns = x->shape[1];
    if (hd <= 0 || columns % hd) {
        PyErr_Format(PyExc_ValueError, "head_norm: wanted heads of %zd, got %zd columns", hd,
                     columns);
        return NULL;
    }
    if (!check_shape(y, "output", x->shape[0], columns)) return NULL;
    const HeadNorm n = {.rows = x->shape[0], .heads = columns / hd, .n = hd, .x = rows_of(x),
                        .y = rows_of(y), .gamma = gamma->buf, .eps = (float)eps};
    UNLOCKED(table->head_norm(&n));
    return done(0);
}

PyObject *bind_layer_norm(Call *call, const Table *table, Args a) {
    const Py_buffer *x, *gamma, *beta;
    const double eps = PyFloat_AsDouble(a[3]);
    if (PyErr_Occurred() || !(x = take(call, a[0], "norm input", "f", 2, WRITE)) ||
        !(gamma = take(call, a[1], "norm weights", "f", 1, READ)) ||
        !(beta = take(call, a[2], "norm weights", "f", 1, READ)) ||
        !check_weights(gamma, x->shape[1]) || !check_weights(beta, x->shape[1]))
        return NULL;
    const LayerNorm n = {.rows = x->shape[0], .n = x->shape[1], .x = rows_of(x),
                         .gamma = gamma->buf, .beta = beta->buf, .eps = (float)eps};
    UNLOCKED(table->layer_norm(&n));
    return done(0);
}

static PyObject *whole(Call *call, const Table *table, Args a, PyObject *scales) {
    const Py_buffer *x, *q, *s;
    if (!(x = take(call, a[0], "rows", "f", 2, READ)) ||
        !take_padded(call, a[1], scales, &q, &s) ||
        !check_output(q, s, x->shape[0], x->shape[1]))
        return NULL;
    const Whole w = {.out = padded_of(q, s, x->shape[1]), .x = rows_of(x)};
    long saturated;
    UNLOCKED(saturated = table->whole(&w));
    return scales ? done(saturated) : counted(saturated);
}

PyObject *bind_quantise_i8(Call *call, const Table *table, Args a) {
    return whole(call, table, a, a[2]);
}

PyObject *bind_round_f16(Call *call, const Table *table, Args a) {
    return whole(call, table, a, NULL);
}

static void copy_segments(const Gather *g) {
    for (ptrdiff_t r = 0; r < g->out.rows; r++) {
        char *to = g->out.q.at + r * g->out.q.stride, *end = to + g->out.kp * 2;
        for (ptrdiff_t p = 0; p < g->segments.parts; to += g->segments.at[p++].n * 2) {
            const Segment *s = g->segments.at + p;
            memcpy(to, s->rows.at + r * s->rows.stride, (size_t)s->n * 2);
        }
        memset(to, 0, (size_t)(end - to));
    }
}

static PyObject *gather(Call *call, const Table *table, Args a, PyObject *scales) {
    const Py_buffer *q, *s;
    Segments segments;
    long failed = 0;
    if (!take_padded(call, a[1], scales, &q, &s) ||
        !take_segments(call, a[0], q->shape[0], &segments) ||
        !check_output(q, s, q->shape[0], segments.width))
        return NULL;
    const Gather g = {.out = padded_of(q, s, segments.width), .segments = segments};
    if (scales) UNLOCKED(failed = table->gather_i8(&g));
    else UNLOCKED(copy_segments(&g));
    return done(failed);
}

PyObject *bind_gather_i8(Call *call, const Table *table, Args a) {
    return gather(call, table, a, a[2]);
}

PyObject *bind_gather_f16(Call *call, const Table *table, Args a) {
    return gather(call, table, a, NULL);
}

PyObject *bind_add(Call *call, const Table *table, Args a) {
    Segments segments;
    const Py_buffer *x = take(call, a[0], "add", "f", 2, WRITE);
    if (x == NULL || !take_segments(call, a[1], x->shape[0], &segments)) return NULL;
    if (segments.width != x->shape[1]) {
        PyErr_Format(PyExc_ValueError, "add: wanted %zd columns, got %zd", x->shape[1],
                     segments.width);
        return NULL;
    }
    UNLOCKED(table->add(x->shape[0], rows_of(x), &segments));
    return done(0);
}

PyObject *bind_add_norm(Call *call, const Table *table, Args a) {
    AddNorm n = {.rows = 0};
    const Py_buffer *gamma, *x = take(call, a[0], "add_norm", "f", 2, WRITE);
    if (x == NULL || !take_segments(call, a[1], x->shape[0], &n.segments) ||
        !(gamma = take(call, a[2], "norm weights", "f", 1, READ)))
        return NULL;
    n.eps = (float)PyFloat_AsDouble(a[3]);
    if (PyErr_Occurred()) return NULL;
    if (n.segments.width != x->shape[1]) {
        PyErr_Format(PyExc_ValueError, "add_norm: wanted %zd columns, got %zd", x->shape[1],
                     n.segments.width);
        return NULL;
    }
    if (!check_weights(gamma, x->shape[1])) return NULL;
    n.rows = x->shape[0];
    n.x = rows_of(x);
    n.gamma = gamma->buf;
    long failed;
    UNLOCKED(failed = table->add_norm(&n));
    return done(failed);
}

static PyObject *gate(Call *call, Args a, const char *name, Gate *kernel) {
    const Py_buffer *gu, *out;
    if (!(gu = take(call, a[0], name, "f", 2, READ)) ||
        !(out = take(call, a[1], "output", "fe", 2, WRITE)))
        return NULL;
    const Py_ssize_t rows = gu->shape[0], n = out->shape[1];
    if (gu->shape[1] != 2 * n) {
        PyErr_Format(PyExc_ValueError, "%s: wanted %zd columns, got %zd", name, 2 * n,
                     gu->shape[1]);
        return NULL;
    }
    if (!check_shape(out, "output", rows, n)) return NULL;
    long saturated;
    UNLOCKED(saturated = kernel(rows, n, rows_of(gu), rows_of(out), is_half(out)));
    return counted(saturated);
}

#define BIND(name)                                               \
    PyObject *bind_##name(Call *call, const Table *table, Args a) { \
        return gate(call, a, #name, table->name);                \
    }
GATES(BIND)
#undef BIND

static PyObject *apply(Call *call, Args a, const char *name, Apply *kernel) {
    const Py_buffer *x, *out;
    if (!(x = take(call, a[0], name, "f", 2, READ)) ||
        !(out = take(call, a[1], "output", "fe", 2, WRITE)))
        return NULL;
    const Py_ssize_t rows = x->shape[0], n = out->shape[1];
    if (x->shape[1] != n) {
        PyErr_Format(PyExc_ValueError, "%s: wanted %zd columns, got %zd", name, n, x->shape[1]);
        return NULL;
    }
    if (!check_shape(out, "output", rows, n)) return NULL;
    long saturated;
    UNLOCKED(saturated = kernel(rows, n, rows_of(x), rows_of(out), is_half(out)));
    return counted(saturated);
}

#define BIND(name)                                               \
    PyObject *bind_##name(Call *call, const Table *table, Args a) { \
        return apply(call, a, #name, table->name);               \
    }
APPLIED(BIND)
#undef BIND

PyObject *bind_add_bias(Call *call, const Table *table, Args a) {
    const Py_buffer *x, *bias, *y;
    if (!(x = take(call, a[0], "bias", "f", 2, READ)) ||
        !(bias = take(call, a[1], "bias", "f", 1, READ)) ||
        !(y = take(call, a[2], "output", "fe", 2, WRITE)))
        return NULL;
    const Py_ssize_t rows = x->shape[0], n = x->shape[1];
    if (bias->shape[0] != n) {
        PyErr_Format(PyExc_ValueError, "bias: wanted %zd values, got shape (%zd,)", n,
                     bias->shape[0]);
        return NULL;
    }
    if (!check_shape(y, "output", rows, n)) return NULL;
    long saturated;
    UNLOCKED(saturated = table->add_bias(rows, n, rows_of(x), bias->buf, rows_of(y), is_half(y)));
    return counted(saturated);
}

static int check_matmul(const Py_buffer *x, const Py_buffer *w, Py_ssize_t columns) {
    const Py_ssize_t kp = x->shape[1];
    if (kp % LANES == 0 && kp <= MAX_TERMS && w->shape[0] == columns * kp) return 1;
    PyErr_Format(PyExc_ValueError,
                 "matmul: %zd columns of K = %zd want %zd weights, K a multiple of %d up to %d; "
                 "got %zd weights",
                 columns, kp, columns * kp, LANES, MAX_TERMS, w->shape[0]);
    return 0;
}

typedef struct { /* the arguments of a product; scales with int8, NULL: fp16 */
    PyObject *x, *sx, *w, *sw, *y;
} Product;

static PyObject *matmul(Call *call, const Table *table, Product a) {
    const Py_buffer *x, *w, *y, *sx = NULL, *sw = NULL;
    const char *kind = a.sx ? "b" : "e";
    if (!(x = take(call, a.x, "matmul input", kind, 2, READ)) ||
        !(w = take(call, a.w, "matmul weights", kind, 1, READ)) ||
        !(y = take(call, a.y, "output", "fe", 2, WRITE)) ||
        (a.sx && (!(sx = take(call, a.sx, "matmul input scales", "f", 1, READ)) ||
                  !(sw = take(call, a.sw, "matmul weight scales", "f", 1, READ)))))
        return NULL;
    const Py_ssize_t rows = x->shape[0], columns = sw ? sw->shape[0] : y->shape[1];
    if (!check_matmul(x, w, columns) || !check_shape(y, "output", rows, columns) ||
        (sx && !check_length(sx, "matmul input scales", rows)))
        return NULL;
    const Matmul m = {.rows = rows, .columns = columns, .kp = x->shape[1], .x = rows_of(x),
                      .y = rows_of(y), .sx = sx ? sx->buf : NULL, .sw = sw ? sw->buf : NULL,
                      .w = w->buf, .half = is_half(y)};
    long saturated = 0;
    if (rows > 0) UNLOCKED(saturated = sx ? table->matmul_i8(&m) : table->matmul_f16(&m));
    return counted(saturated);
}

PyObject *bind_matmul_i8(Call *call, const Table *table, Args a) {
    return matmul(call, table, (Product){.x = a[0], .sx = a[1], .w = a[2], .sw = a[3], .y = a[4]});
}

static int check_groups(const Py_buffer *x, const Py_buffer *w, const Py_buffer *sw) {
    const Py_ssize_t kp = x->shape[1], groups = sw->shape[0], columns = sw->shape[1];
    const Py_ssize_t group = groups > 0 && kp % groups == 0 ? kp / groups : 0;
    const int known = group == LANES || group == 160 || group == 64 || group == 32;
    if (known && kp % LANES == 0 && kp <= MAX_TERMS && w->shape[0] == (columns + 1) / 2 * kp)
        return 1;
    PyErr_Format(PyExc_ValueError,
                 "matmul: %zd columns of K = %zd with %zd scales each want %zd bytes of weights, K "
                 "a multiple of %d up to %d, and a scale for 320, 160, 64 or 32 rows of it; got "
                 "%zd bytes",
                 columns, kp, groups, (columns + 1) / 2 * kp, LANES, MAX_TERMS, w->shape[0]);
    return 0;
}

PyObject *bind_matmul_i4(Call *call, const Table *table, Args a) {
    const Py_buffer *x, *w, *y, *sx, *sw;
    if (!(x = take(call, a[0], "matmul input", "b", 2, READ)) ||
        !(sx = take(call, a[1], "matmul input scales", "f", 1, READ)) ||
        !(w = take(call, a[2], "matmul weights", "b", 1, READ)) ||
        !(sw = take(call, a[3], "matmul weight scales", "f", 2, READ)) ||
        !(y = take(call, a[4], "output", "fe", 2, WRITE)))
        return NULL;
    const Py_ssize_t rows = x->shape[0], columns = sw->shape[1];
    if (!check_groups(x, w, sw) || !check_shape(y, "output", rows, columns) ||
        !check_length(sx, "matmul input scales", rows))
        return NULL;
    const Matmul m = {.rows = rows, .columns = columns, .kp = x->shape[1], .x = rows_of(x),
                      .y = rows_of(y), .sx = sx->buf, .sw = sw->buf, .w = w->buf,
                      .half = is_half(y), .group = x->shape[1] / sw->shape[0],
                      .sw_stride = sw->strides[0]};
    long saturated = 0;
    if (rows > 0) UNLOCKED(saturated = table->matmul_i4(&m));
    return counted(saturated);
}

PyObject *bind_matmul_f16(Call *call, const Table *table, Args a) {
    return matmul(call, table, (Product){.x = a[0], .w = a[1], .y = a[2]});
}

PyObject *bind_route(Call *call, const Table *table, Args a) {
    const Py_buffer *x, *e, *g;
    const int after = PyObject_IsTrue(a[3]);
    if (after < 0 || !(x = take(call, a[0], "route", "f", 2, READ)) ||
        !(e = take(call, a[1], "experts", "i", 2, WRITE)) ||
        !(g = take(call, a[2], "expert weights", "f", 2, WRITE)))
        return NULL;
    const Py_ssize_t rows = x->shape[0], experts = x->shape[1], chosen = e->shape[1];
    if (e->shape[0] != rows || g->shape[0] != rows || g->shape[1] != chosen || chosen < 1 ||
        chosen > experts) {
        PyErr_Format(PyExc_ValueError,
                     "route: wanted at most %zd experts for %zd rows, got (%zd, %zd), (%zd, %zd)",
                     experts, rows, e->shape[0], chosen, g->shape[0], g->shape[1]);
        return NULL;
    }
    const Route p = {.rows = rows, .experts = experts, .chosen = chosen, .after = after,
                     .x = rows_of(x), .e = rows_of(e), .g = rows_of(g)};
    long failed;
    UNLOCKED(failed = table->route(&p));
    return done(failed);
}

PyObject *bind_weighted_sum(Call *call, const Table *table, Args a) {
    const Py_buffer *y, *g, *out;
    if (!(y = take(call, a[0], "parts", "f", 3, READ)) ||
        !(g = take(call, a[1], "expert weights", "f", 2, READ)) ||
        !(out = take(call, a[2], "output", "fe", 2, WRITE)) ||
        !check_shape(g, "expert weights", y->shape[0], y->shape[1]) ||
        !check_shape(out, "output", y->shape[0], y->shape[2]))
        return NULL;
    const WeightedSum p = {.rows = y->shape[0], .parts = y->shape[1], .n = y->shape[2],
                           .y = heads_of(y), .g = rows_of(g), .out = rows_of(out),
                           .half = is_half(out)};
    long saturated;
    UNLOCKED(saturated = table->weighted_sum(&p));
    return counted(saturated);
}
