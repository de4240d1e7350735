/* Bindings: rotate into the cache, attention. Texts of refusals are those of the twin. */

#include "module.h"

static void not_the_rope(const Py_buffer *qkv, const Py_buffer *rope, Py_ssize_t width) {
    PyObject *got = shape_of(qkv), *table = shape_of(rope);
    const Py_ssize_t rows = qkv->shape[0];
    if (got && table)
        PyErr_Format(PyExc_ValueError,
                     "rope: wanted qkv (%zd, %zd) and rope (%zd, 2, %zd), got %R, %R", rows, width,
                     rows, rope->shape[2], got, table);
    Py_XDECREF(got);
    Py_XDECREF(table);
}

static int check_rope(const Py_buffer *qkv, const Py_buffer *rope, const Py_buffer *q,
                      Py_ssize_t heads) {
    const Py_ssize_t rows = qkv->shape[0], n_q = q->shape[1];
    const Py_ssize_t hd = rope->shape[2] ? 2 * rope->shape[2] : q->shape[2];
    if (qkv->shape[1] != (n_q + 2 * heads) * hd || rope->shape[0] != rows || rope->shape[1] != 2) {
        not_the_rope(qkv, rope, (n_q + 2 * heads) * hd);
        return 0;
    }
    if (q->shape[0] == rows && q->shape[2] == hd && hd > 0) return 1;
    PyErr_Format(PyExc_ValueError, "rope: wanted queries (%zd, %zd, %zd), got (%zd, %zd, %zd)",
                 rows, n_q, hd, q->shape[0], q->shape[1], q->shape[2]);
    return 0;
}

typedef struct { /* caches of all KV heads; scales with int8, NULL: fp16 */
    PyObject *k, *ks, *v, *vs;
} Caches;

/* Take both caches; *tokens becomes the least that any of their views holds. */
static int take_both(Call *call, Caches from, const char *kind, Py_ssize_t heads, Py_ssize_t hd,
                     int mode, const Cache **k, const Cache **v, Py_ssize_t *tokens) {
    *tokens = PY_SSIZE_T_MAX;
    return (*k = take_caches(call, from.k, from.ks, kind, heads, hd, mode, tokens)) &&
           (*v = take_caches(call, from.v, from.vs, kind, heads, hd, mode, tokens));
}

typedef struct { /* sq with int8, NULL: fp16; no `scale`: 1 / sqrt(hd) */
    PyObject *qkv, *rope, *positions, *q, *sq, *scale;
    Caches caches;
} RopeArguments;

static PyObject *rope_cache(Call *call, const Table *table, RopeArguments a) {
    const Cache *k, *v;
    const Py_buffer *qkv, *rope, *positions, *q, *sq = NULL;
    const char *kind = a.sq ? "b" : "e";
    const double scale = a.scale ? PyFloat_AsDouble(a.scale) : 0.0;
    const Py_ssize_t heads = PyErr_Occurred() ? -1 : PySequence_Size(a.caches.k);
    Py_ssize_t tokens;
    if (heads < 0 || !(qkv = take(call, a.qkv, "qkv", "f", 2, READ)) ||
        !(rope = take(call, a.rope, "rope", "f", 3, READ)) ||
        !(positions = take(call, a.positions, "positions", "l", 1, READ)) ||
        !(q = take(call, a.q, "queries", kind, 3, WRITE)) ||
        (a.sq && !(sq = take(call, a.sq, "query scales", "f", 2, WRITE))) ||
        !check_rope(qkv, rope, q, heads))
        return NULL;
    const Py_ssize_t rows = qkv->shape[0], hd = q->shape[2];
    if (!take_both(call, a.caches, kind, heads, hd, WRITE, &k, &v, &tokens) ||
        !check_positions(positions, rows, tokens) ||
        (sq && !check_shape(sq, "query scales", rows, q->shape[1])))
        return NULL;
    const Rope p = {.rows = rows, .n_q = q->shape[1], .n_kv = heads, .hd = hd,
                    .qkv = rows_of(qkv), .sq = sq ? rows_of(sq) : (Rows){NULL, 0},
                    .rope = heads_of(rope), .rotates = rope->shape[2] > 0, .q = heads_of(q),
                    .scale = (float)scale,
                    .positions = positions->buf, .k = k, .v = v};
    long saturated;
    UNLOCKED(saturated = table->rope(&p));
    return sq ? done(saturated) : counted(saturated);
}

PyObject *bind_scaled_rope_cache_i8(Call *call, const Table *table, Args a) {
    const Caches caches = {.k = a[5], .ks = a[6], .v = a[7], .vs = a[8]};
    const RopeArguments all = {.qkv = a[0], .rope = a[1], .positions = a[2], .q = a[3],
                               .sq = a[4], .scale = a[9], .caches = caches};
    return rope_cache(call, table, all);
}

PyObject *bind_rope_cache_f16(Call *call, const Table *table, Args a) {
    const Caches caches = {.k = a[4], .v = a[5]};
    const RopeArguments all = {.qkv = a[0], .rope = a[1], .positions = a[2], .q = a[3],
                               .caches = caches};
    return rope_cache(call, table, all);
}

static ptrdiff_t *take_map(Call *call, PyObject *kv_of, Py_ssize_t n_q, Py_ssize_t heads) {
    PyObject *items = PySequence_Fast(kv_of, "kv_of: wanted a sequence");
    ptrdiff_t *map = items ? hold(call, n_q, sizeof *map) : NULL;
    int ok = map != NULL && PySequence_Fast_GET_SIZE(items) == n_q;
    for (Py_ssize_t j = 0; ok && j < n_q; j++) {
        map[j] = PyLong_AsSsize_t(PySequence_Fast_GET_ITEM(items, j));
        ok = map[j] >= 0 && map[j] < heads;
    }
    if (!ok && !PyErr_Occurred()) {
        PyObject *list = PySequence_List(items);
        if (list)
            PyErr_Format(PyExc_ValueError,
                         "attention: kv_of must map %zd query heads to %zd KV heads, got %R", n_q,
                         heads, list);
        Py_XDECREF(list);
    }
    Py_XDECREF(items);
    return ok ? map : NULL;
}

static int check_head(Py_ssize_t hd, int int8) {
    if (hd <= (int8 ? MAX_HEAD : LANES)) return 1;
    if (int8) PyErr_Format(PyExc_ValueError, "head: wanted at most %d, got %zd", MAX_HEAD, hd);
    else
        PyErr_Format(PyExc_ValueError, "attention: wanted heads of at most %d, got %zd", LANES, hd);
    return 0;
}

typedef struct { /* each but `ring` may be None; NULL: no mask is asked for */
    PyObject *window, *ring, *cap, *sinks;
} Mask;

/* Take whether the caches, of so many tokens, are a ring. 0 with an exception set. */
static int take_ring(PyObject *ring, Py_ssize_t tokens, ptrdiff_t *to) {
    const int is_ring = PyObject_IsTrue(ring);
    *to = is_ring > 0 ? tokens : 0;
    return is_ring >= 0;
}

static int check_ring(Mask mask, const Attention *a) {
    if (a->ring == 0 || (a->window && a->window <= a->ring)) return 1;
    PyErr_Format(PyExc_ValueError,
                 "attention: wanted a window of at most the ring's %zd slots, got %R", a->ring,
                 mask.window);
    return 0;
}

static int take_window(PyObject *window, ptrdiff_t *to) {
    if (window == Py_None) return 1;
    *to = PyLong_AsSsize_t(window);
    if (*to == -1 && PyErr_Occurred()) return 0;
    if (*to > 0) return 1;
    PyErr_Format(PyExc_ValueError, "attention: wanted a window of 1 or more, got %zd", *to);
    return 0;
}

static int take_cap(PyObject *cap, const char *who, float *to, float *per) {
    if (cap == Py_None) return 1;
    const double value = PyFloat_AsDouble(cap);
    if (PyErr_Occurred()) return 0;
    *to = (float)value;
    *per = (float)(1.0 / value);
    if (value > 0) return 1;
    PyErr_Format(PyExc_ValueError, "%s more than 0, got %R", who, cap);
    return 0;
}

/* Put a mask into `to`. 0 with an exception set. */
static int take_mask(Call *call, Mask mask, Attention *to) {
    if (!take_window(mask.window, &to->window) || !check_ring(mask, to) ||
        !take_cap(mask.cap, "attention: wanted a cap of", &to->cap, &to->per_cap))
        return 0;
    if (mask.sinks == Py_None) return 1;
    const Py_buffer *sinks = take(call, mask.sinks, "sinks", "f", 1, READ);
    if (sinks == NULL) return 0;
    to->sinks = sinks->buf;
    if (sinks->shape[0] == to->n_q) return 1;
    PyErr_Format(PyExc_ValueError, "attention: wanted %zd sinks, got shape (%zd,)", to->n_q,
                 sinks->shape[0]);
    return 0;
}

PyObject *bind_cap(Call *call, const Table *table, Args a) {
    float cap = 0, per = 0;
    const Py_buffer *x = take(call, a[0], "cap", "f", 2, WRITE);
    if (x == NULL || !take_cap(a[1], "cap: wanted", &cap, &per)) return NULL;
    UNLOCKED(table->cap(x->shape[0], x->shape[1], rows_of(x), cap, per));
    return done(0);
}

typedef struct { /* sq with int8, `scale` with fp16; the other is NULL */
    PyObject *q, *sq, *kv_of, *positions, *scale, *out;
    Caches caches;
    Mask mask;
} AttentionArguments;

static PyObject *attention(Call *call, const Table *table, AttentionArguments a) {
    const Cache *k, *v;
    const ptrdiff_t *map;
    const Py_buffer *q, *positions, *out, *sq = NULL;
    const char *kind = a.sq ? "b" : "e";
    const double scale = a.scale ? PyFloat_AsDouble(a.scale) : 0.0;
    const Py_ssize_t heads = PyErr_Occurred() ? -1 : PySequence_Size(a.caches.k);
    Py_ssize_t tokens;
    ptrdiff_t ring;
    if (heads < 0 || !(q = take(call, a.q, "queries", kind, 3, READ)) ||
        !(positions = take(call, a.positions, "positions", "l", 1, READ)) ||
        !(out = take(call, a.out, "output", "fe", 2, WRITE)) ||
        (a.sq && !(sq = take(call, a.sq, "query scales", "f", 2, READ))))
        return NULL;
    const Py_ssize_t rows = q->shape[0], n_q = q->shape[1], hd = q->shape[2];
    if (!(map = take_map(call, a.kv_of, n_q, heads)) || !check_head(hd, sq != NULL) ||
        !take_both(call, a.caches, kind, heads, hd, READ, &k, &v, &tokens) ||
        !take_ring(a.mask.ring, tokens, &ring) ||
        !check_positions(positions, rows, ring ? PY_SSIZE_T_MAX : tokens) ||
        !check_shape(out, "output", rows, n_q * hd) ||
        (sq && !check_shape(sq, "query scales", rows, n_q)))
        return NULL;
    Attention p = {.rows = rows, .n_q = n_q, .n_kv = heads, .hd = hd, .q = heads_of(q),
                         .sq = sq ? rows_of(sq) : (Rows){NULL, 0}, .out = rows_of(out),
                         .positions = positions->buf, .kv_of = map, .k = k, .v = v,
                         .scale = (float)scale, .half = is_half(out), .ring = ring};
    if (!take_mask(call, a.mask, &p)) return NULL;
    long saturated;
    UNLOCKED(saturated = sq ? table->attention_i8(&p) : table->attention_f16(&p));
    return counted(saturated);
}

PyObject *bind_masked_attention_i8(Call *call, const Table *table, Args a) {
    const Caches caches = {.k = a[2], .ks = a[3], .v = a[4], .vs = a[5]};
    const AttentionArguments all = {.q = a[0], .sq = a[1], .caches = caches, .kv_of = a[6],
                                    .positions = a[7], .out = a[12],
                                    .mask = {a[8], a[9], a[10], a[11]}};
    return attention(call, table, all);
}

PyObject *bind_masked_attention_f16(Call *call, const Table *table, Args a) {
    const Caches caches = {.k = a[1], .v = a[2]};
    const AttentionArguments all = {.q = a[0], .caches = caches, .kv_of = a[3], .positions = a[4],
                                    .scale = a[5], .mask = {a[6], a[7], a[8], a[9]}, .out = a[10]};
    return attention(call, table, all);
}
