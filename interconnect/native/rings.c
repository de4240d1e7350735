/* Rings of messages in shared memory: one reader, one ring per writer (interconnect/rings.py).

   The memory is the reader's. A page of its own words, then per ring a page with the two ends and
   `capacity` bytes of data. Records are a 32-bit length and the bytes, padded to 8, and may wrap.
   Length MARK stands for a message that went another way. Ends only grow; each has one writer.
   Everything is read and written through atomics or after them, so both sides agree on any CPU. */

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
    _Alignas(64) _Atomic uint32_t bell;     /* counts messages put, by all writers */
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
    if (memory.len >= PAGE && token.len == 16) {
        Head *head = memory.buf;
        memcpy(head->token, token.buf, 16);
        head->rings = rings, head->capacity = capacity;
    }
    Head *done = token.len == 16 ? head_of(&memory) : NULL;
    if (done == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "rings: wanted a token of 16 bytes");
    PyBuffer_Release(&memory), PyBuffer_Release(&token);
    if (done == NULL) return NULL;
    Py_RETURN_NONE;
}

/* put(memory, ring, parts) -> 0 no room, 1 there, 2 there and the reader sleeps.
   parts: a sequence of buffers that make one message; None: a mark. */
static PyObject *put(PyObject *self, PyObject *args) {
    Py_buffer memory, part;
    PyObject *parts, *items = NULL;
    unsigned index;
    int result = -1;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*IO", &memory, &index, &parts)) return NULL;
    Head *head = head_of(&memory);
    Ring *ring = head == NULL ? NULL : ring_of(head, index);
    if (ring == NULL) goto done;
    const uint32_t capacity = head->capacity;
    const uint64_t last = atomic_load_explicit(&ring->last, memory_order_relaxed);
    const uint64_t first = atomic_load_explicit(&ring->first, memory_order_acquire);
    const uint64_t room = capacity - (last - first);
    uint64_t at = last + 4;
    if (parts == Py_None) {
        if (room < 8) result = 0;
    } else {
        items = PySequence_Fast(parts, "rings: wanted a sequence of buffers");
        if (items == NULL) goto done;
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items) && result; i++) {
            PyObject *item = PySequence_Fast_GET_ITEM(items, i);
            if (PyObject_GetBuffer(item, &part, PyBUF_SIMPLE) < 0) goto done;
            if (padded(at + (uint64_t)part.len - last) + 8 > room)
                result = 0; /* what is left is kept for a mark */
            else
                write_at(ring, capacity, at, part.buf, (size_t)part.len);
            at += (uint64_t)part.len;
            PyBuffer_Release(&part);
        }
    }
    if (result) {
        const uint32_t length = parts == Py_None ? MARK : (uint32_t)(at - last - 4);
        write_at(ring, capacity, last, &length, 4);
        atomic_store_explicit(&ring->last, last + padded(at - last), memory_order_release);
        atomic_fetch_add(&head->bell, 1);
        result = atomic_exchange(&head->sleeping, 0) ? 2 : 1;
    }
done:
    Py_XDECREF(items);
    PyBuffer_Release(&memory);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(result);
}

/* take(memory, first) -> (ring, message) of the next ring at or after `first` that has one, message
   None for a mark; or the bell's count when all are empty. */
static PyObject *take(PyObject *self, PyObject *args) {
    Py_buffer memory;
    unsigned start;
    PyObject *result = NULL, *message;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*I", &memory, &start)) return NULL;
    Head *head = head_of(&memory);
    if (head == NULL) goto done;
    const uint32_t bell = atomic_load(&head->bell);
    for (unsigned i = 0; i < head->rings; i++) {
        const unsigned index = (start + i) % head->rings;
        Ring *ring = ring_of(head, index);
        const uint64_t first = atomic_load_explicit(&ring->first, memory_order_relaxed);
        if (first == atomic_load_explicit(&ring->last, memory_order_acquire)) continue;
        uint32_t length;
        read_at(ring, head->capacity, first, &length, 4);
        if (length == MARK) {
            message = Py_NewRef(Py_None);
            length = 0;
        } else if (length > head->capacity) {
            PyErr_SetString(PyExc_ValueError, "rings: a record longer than its ring");
            goto done;
        } else {
            message = PyBytes_FromStringAndSize(NULL, length);
            if (message == NULL) goto done;
            read_at(ring, head->capacity, first + 4, PyBytes_AS_STRING(message), length);
        }
        atomic_store_explicit(&ring->first, first + padded(4 + (uint64_t)length),
                              memory_order_release);
        result = Py_BuildValue("(IN)", index, message);
        goto done;
    }
    result = PyLong_FromUnsignedLong(bell);
done:
    PyBuffer_Release(&memory);
    return result;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

/* listen(memory, bell, ns) -> True once the bell has moved on; False after `ns` of looking, giving
   the core away between looks. */
static PyObject *listen(PyObject *self, PyObject *args) {
    Py_buffer memory;
    unsigned bell;
    long long ns;
    int moved;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*IL", &memory, &bell, &ns)) return NULL;
    Head *head = head_of(&memory);
    if (head == NULL) {
        PyBuffer_Release(&memory);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    const int64_t end = now_ns() + ns;
    while (!(moved = atomic_load(&head->bell) != bell) && now_ns() < end) sched_yield();
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&memory);
    return PyBool_FromLong(moved);
}

/* sleep(memory, bell, on) -> whether the reader may sleep: with `on`, asks writers to wake it unless
   the bell has moved on; without, takes that back. */
static PyObject *sleep_(PyObject *self, PyObject *args) {
    Py_buffer memory;
    unsigned bell;
    int on, may = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*Ip", &memory, &bell, &on)) return NULL;
    Head *head = head_of(&memory);
    if (head != NULL) {
        atomic_store(&head->sleeping, (uint32_t)on);
        may = on && atomic_load(&head->bell) == bell;
        if (on && !may) atomic_store(&head->sleeping, 0);
    }
    PyBuffer_Release(&memory);
    return head == NULL ? NULL : PyBool_FromLong(may);
}

static PyMethodDef methods[] = {
    {"lay_out", lay_out, METH_VARARGS, NULL}, {"put", put, METH_VARARGS, NULL},
    {"take", take, METH_VARARGS, NULL},       {"listen", listen, METH_VARARGS, NULL},
    {"sleep", sleep_, METH_VARARGS, NULL},    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_rings", "Rings of messages in shared memory.", -1, methods,
    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rings(void) { return PyModule_Create(&module); }
