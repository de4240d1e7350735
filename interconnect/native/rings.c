/* Rings of messages in shared memory: one reader, one ring for each writer (interconnect/rings.py).

   The memory is the reader's: a page of its own words, then for each ring a page with the two ends
   and `capacity` bytes of data. A record is a 32-bit length and the bytes, padded to 8; it may
   wrap. The length MARK is a placeholder for a message that went another way. Ends only grow; each
   has one writer. All shared words are atomic, and data is read or written only after them, so both
   sides agree on any CPU. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define PAGE 4096
#define MARK 0xFFFFFFFFu

typedef struct {
    char token[16];
    uint32_t rings, capacity;
    _Alignas(64) _Atomic uint32_t bell;     /* event count: messages put, by all writers */
    _Alignas(64) _Atomic uint32_t sleeping; /* the reader wants to be woken */
} Head;

typedef struct {
    _Atomic uint64_t first;              /* the reader's end */
    _Alignas(64) _Atomic uint64_t last;  /* the writer's end */
    _Alignas(PAGE) char data[];
} Ring;

static Head *head_of(Py_buffer *memory) {
    Head *head = memory->buf;
    const size_t ring = PAGE + (memory->len >= PAGE ? head->capacity : 0);
    if (memory->len < PAGE || head->capacity % PAGE || head->capacity < PAGE ||
        (size_t)memory->len != PAGE + head->rings * ring) {
        PyErr_SetString(PyExc_ValueError, "rings: wanted a memory that was laid out by lay_out()");
        return NULL;
    }
    return head;
}

typedef struct { /* the argument that is a memory, until the end of a call */
    Py_buffer buffer;
    Head *head;
} Memory;

/* An "O&" converter: take a memory that lay_out() has made. When a later argument is refused,
   PyArg_ParseTuple calls it again without an object, to give the buffer back. */
static int take_memory(PyObject *object, void *to) {
    Memory *memory = to;
    if (object && PyObject_GetBuffer(object, &memory->buffer, PyBUF_WRITABLE) < 0) return 0;
    memory->head = object ? head_of(&memory->buffer) : NULL;
    if (memory->head) return Py_CLEANUP_SUPPORTED;
    PyBuffer_Release(&memory->buffer);
    return 0;
}

static Ring *ring_of(Head *head, unsigned index) {
    if (index >= head->rings) {
        PyErr_Format(PyExc_ValueError, "rings: wanted one of %u rings, got %u", head->rings, index);
        return NULL;
    }
    return (Ring *)((char *)head + PAGE + index * ((size_t)PAGE + head->capacity));
}

static void write_at(Ring *ring, uint32_t capacity, uint64_t at, const void *from, size_t n) {
    const size_t place = at % capacity, room = capacity - place;
    memcpy(ring->data + place, from, n < room ? n : room);
    if (n > room) memcpy(ring->data, (const char *)from + room, n - room);
}

static void read_at(const Ring *ring, uint32_t capacity, uint64_t at, void *to, size_t n) {
    const size_t place = at % capacity, room = capacity - place;
    memcpy(to, ring->data + place, n < room ? n : room);
    if (n > room) memcpy((char *)to + room, ring->data, n - room);
}

static uint64_t padded(uint64_t n) { return (n + 7) & ~(uint64_t)7; }

static PyObject *lay_out(PyObject *self, PyObject *args) {
    Py_buffer memory, token;
    unsigned rings, capacity;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*y*II", &memory, &token, &rings, &capacity)) return NULL;
    Head *head = memory.buf;
    if (memory.len >= PAGE && token.len == 16) {
        memcpy(head->token, token.buf, 16);
        head->rings = rings, head->capacity = capacity;
    }
    head = token.len == 16 ? head_of(&memory) : NULL;
    if (head == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "rings: wanted a token of 16 bytes");
    PyBuffer_Release(&memory), PyBuffer_Release(&token);
    return head ? Py_NewRef(Py_None) : NULL;
}

/* Write the parts of a message from *at on and move *at behind them. 1: done; 0: no room (the last
   8 bytes of a ring are kept for a mark); -1 with an exception set. */
static int write_parts(const Head *head, Ring *ring, PyObject *parts, uint64_t room, uint64_t *at) {
    const uint64_t start = *at - 4;
    PyObject *items = PySequence_Fast(parts, "rings: wanted a sequence of buffers");
    int result = items ? 1 : -1;
    for (Py_ssize_t i = 0; result > 0 && i < PySequence_Fast_GET_SIZE(items); i++) {
        Py_buffer part;
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(items, i), &part, PyBUF_SIMPLE) < 0) {
            result = -1;
            break;
        }
        if (padded(*at + (uint64_t)part.len - start) + 8 > room) result = 0;
        else write_at(ring, head->capacity, *at, part.buf, (size_t)part.len);
        *at += (uint64_t)part.len;
        PyBuffer_Release(&part);
    }
    Py_XDECREF(items);
    return result;
}

static int put_record(Head *head, Ring *ring, PyObject *parts) {
    const uint64_t last = atomic_load_explicit(&ring->last, memory_order_relaxed);
    const uint64_t first = atomic_load_explicit(&ring->first, memory_order_acquire);
    const uint64_t room = head->capacity - (last - first);
    const int mark = parts == Py_None;
    uint64_t end = last + 4;
    const int fits = mark ? room >= 8 : write_parts(head, ring, parts, room, &end);
    if (fits <= 0) return fits;
    const uint32_t length = mark ? MARK : (uint32_t)(end - last - 4);
    write_at(ring, head->capacity, last, &length, 4);
    atomic_store_explicit(&ring->last, last + padded(end - last), memory_order_release);
    atomic_fetch_add(&head->bell, 1);
    return atomic_exchange(&head->sleeping, 0) ? 2 : 1;
}

/* put(memory, ring, parts) -> 0 no room, 1 there, 2 there and the reader sleeps.
   parts: a sequence of buffers that make one message; None: a mark. */
static PyObject *put(PyObject *self, PyObject *args) {
    Memory memory;
    PyObject *parts;
    unsigned index;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&IO", take_memory, &memory, &index, &parts)) return NULL;
    Ring *ring = ring_of(memory.head, index);
    const int result = ring ? put_record(memory.head, ring, parts) : -1;
    PyBuffer_Release(&memory.buffer);
    return result < 0 ? NULL : PyLong_FromLong(result);
}

/* Take the oldest record: its message, or None for a mark. */
static PyObject *take_record(const Head *head, Ring *ring, uint64_t first) {
    PyObject *message;
    uint32_t length;
    read_at(ring, head->capacity, first, &length, 4);
    if (length == MARK) {
        message = Py_NewRef(Py_None);
        length = 0;
    } else if (length > head->capacity) {
        PyErr_SetString(PyExc_ValueError, "rings: a record longer than its ring");
        return NULL;
    } else {
        message = PyBytes_FromStringAndSize(NULL, length);
        if (message == NULL) return NULL;
        read_at(ring, head->capacity, first + 4, PyBytes_AS_STRING(message), length);
    }
    atomic_store_explicit(&ring->first, first + padded(4 + (uint64_t)length), memory_order_release);
    return message;
}

/* Take from the next ring at or after `start` that has a record: (ring, message). The bell's count
   where all are empty. */
static PyObject *take_next(Head *head, unsigned start) {
    const uint32_t bell = atomic_load(&head->bell);
    for (unsigned i = 0; i < head->rings; i++) {
        const unsigned index = (start + i) % head->rings;
        Ring *ring = ring_of(head, index);
        const uint64_t first = atomic_load_explicit(&ring->first, memory_order_relaxed);
        if (first == atomic_load_explicit(&ring->last, memory_order_acquire)) continue;
        PyObject *message = take_record(head, ring, first);
        return message ? Py_BuildValue("(IN)", index, message) : NULL;
    }
    return PyLong_FromUnsignedLong(bell);
}

/* take(memory, start) -> (ring, message), message None for a mark; or the bell's count when all
   rings are empty. */
static PyObject *take(PyObject *self, PyObject *args) {
    Memory memory;
    unsigned start;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&I", take_memory, &memory, &start)) return NULL;
    PyObject *result = take_next(memory.head, start);
    PyBuffer_Release(&memory.buffer);
    return result;
}

/* skip(memory, ring): drop all records of a ring. */
static PyObject *skip(PyObject *self, PyObject *args) {
    Memory memory;
    unsigned index;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&I", take_memory, &memory, &index)) return NULL;
    Ring *ring = ring_of(memory.head, index);
    if (ring) atomic_store(&ring->first, atomic_load(&ring->last));
    PyBuffer_Release(&memory.buffer);
    return ring ? Py_NewRef(Py_None) : NULL;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

/* listen(memory, bell, ns) -> True once the bell's count is another; False after `ns` of polling,
   which yields the core between looks. */
static PyObject *listen(PyObject *self, PyObject *args) {
    Memory memory;
    unsigned bell;
    long long ns;
    int moved;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&IL", take_memory, &memory, &bell, &ns)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    const int64_t end = now_ns() + ns;
    while (!(moved = atomic_load(&memory.head->bell) != bell) && now_ns() < end) sched_yield();
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&memory.buffer);
    return PyBool_FromLong(moved);
}

/* sleep(memory, bell, on) -> whether the reader may sleep. With `on`, asks writers to wake it
   unless the bell's count is another; without, takes that back. */
static PyObject *sleep_(PyObject *self, PyObject *args) {
    Memory memory;
    unsigned bell;
    int on;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&Ip", take_memory, &memory, &bell, &on)) return NULL;
    atomic_store(&memory.head->sleeping, (uint32_t)on);
    const int may = on && atomic_load(&memory.head->bell) == bell;
    if (on && !may) atomic_store(&memory.head->sleeping, 0);
    PyBuffer_Release(&memory.buffer);
    return PyBool_FromLong(may);
}

static PyObject *sources(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyUnicode_FromString(LPU_SOURCES);
}

static PyMethodDef methods[] = {
    {"sources", sources, METH_NOARGS, "Return the digest of what this is made of (setup.py)."},
    {"lay_out", lay_out, METH_VARARGS, NULL}, {"put", put, METH_VARARGS, NULL},
    {"take", take, METH_VARARGS, NULL},       {"skip", skip, METH_VARARGS, NULL},
    {"listen", listen, METH_VARARGS, NULL},
    {"sleep", sleep_, METH_VARARGS, NULL},    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_rings", "Rings of messages in shared memory.", -1, methods,
    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rings(void) { return PyModule_Create(&module); }
