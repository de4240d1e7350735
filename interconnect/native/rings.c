/* The functions of interconnect/rings.py over a memory of rings (rings.h). */

#include "rings.h"

#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

Head *head_of(const Py_buffer *memory) {
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

Ring *ring_of(Head *head, unsigned index) {
    if (index >= head->rings) {
        PyErr_Format(PyExc_ValueError, "rings: wanted one of %u rings, got %u", head->rings, index);
        return NULL;
    }
    return (Ring *)((char *)head + PAGE + index * ((size_t)PAGE + head->capacity));
}

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

static int put_record(Head *head, unsigned index, Ring *ring, PyObject *parts) {
    const uint64_t last = atomic_load_explicit(&ring->last, memory_order_relaxed);
    const uint64_t first = atomic_load_explicit(&ring->first, memory_order_acquire);
    const uint64_t room = head->capacity - (last - first);
    const int mark = parts == Py_None;
    uint64_t end = last + 4;
    const int fits = mark ? room >= 8 : write_parts(head, ring, parts, room, &end);
    if (fits <= 0) return fits;
    const uint32_t length = mark ? MARK : (uint32_t)(end - last - 4);
    write_at(ring, head->capacity, last, &length, 4);
    return publish(head, ring, index, last + padded(end - last)) ? 2 : 1;
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
    const int result = ring ? put_record(memory.head, index, ring, parts) : -1;
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
    release(ring, first + padded(4 + (uint64_t)length));
    return message;
}

/* Take from the next ring at or after `start` that has a record: (ring, message). The bell's count
   where `rings` of them are empty. */
static PyObject *take_next(Head *head, unsigned start, unsigned rings) {
    const uint32_t bell = atomic_load(&head->bell);
    for (unsigned i = 0; i < rings; i++) {
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
    PyObject *result = take_next(memory.head, start, memory.head->rings);
    PyBuffer_Release(&memory.buffer);
    return result;
}

/* take_of(memory, ring): as take(), but of that ring alone. */
static PyObject *take_of(PyObject *self, PyObject *args) {
    Memory memory;
    unsigned index;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&I", take_memory, &memory, &index)) return NULL;
    PyObject *result = ring_of(memory.head, index) ? take_next(memory.head, index, 1) : NULL;
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
    atomic_store(&memory.head->sleeping, on ? ANY_RING : AWAKE);
    const int may = on && atomic_load(&memory.head->bell) == bell;
    if (on && !may) atomic_store(&memory.head->sleeping, AWAKE);
    PyBuffer_Release(&memory.buffer);
    return PyBool_FromLong(may);
}

/* holds(memory, ring) -> whether the ring has a message. */
static PyObject *holds(PyObject *self, PyObject *args) {
    Memory memory;
    unsigned index;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&I", take_memory, &memory, &index)) return NULL;
    const Ring *ring = ring_of(memory.head, index);
    const int there = ring && held_bytes(ring) != 0;
    PyBuffer_Release(&memory.buffer);
    return ring ? PyBool_FromLong(there) : NULL;
}

static int any_crowded(Head *head) {
    for (unsigned i = 0; i < head->rings; i++)
        if (crowded(head, ring_of(head, i))) return 1;
    return 0;
}

/* Sleep until the ring has a message, another one is crowded, the file `other` can be read, or so
   many ms are over: whether it can be read. */
static int sleep_for(Head *head, unsigned index, int pipe_fd, int other, int ms) {
    struct pollfd files[2] = {{pipe_fd, POLLIN, 0}, {other, POLLIN, 0}};
    char drained[64];
    atomic_store(&head->sleeping, FIRST_RING + index);
    if (!held_bytes(ring_of(head, index)) && !any_crowded(head)) poll(files, 2, ms);
    atomic_store(&head->sleeping, AWAKE);
    while (files[0].revents && read(pipe_fd, drained, sizeof drained) == sizeof drained) continue;
    return files[1].revents != 0;
}

/* wait_for(memory, ring, ns, pipe_fd, other, ms) -> (looked, there, readable): whether the ring has a
   message after looking for `ns`, as listen() does; whether it has one at the end; whether the file
   `other` can be read. Sleeps if looking is in vain; a crowded ring, that file, signals and the end
   of `ms` (-1: never) wake it as well. */
static PyObject *wait_for(PyObject *self, PyObject *args) {
    Memory memory;
    unsigned index;
    long long ns;
    int pipe_fd, other, ms, looked = 0, readable = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&ILiii", take_memory, &memory, &index, &ns, &pipe_fd, &other,
                          &ms))
        return NULL;
    const Ring *ring = ring_of(memory.head, index);
    if (ring) {
        Py_BEGIN_ALLOW_THREADS;
        const int64_t end = ns ? now_ns() + ns : 0;
        while (!(looked = held_bytes(ring) != 0) && ns && now_ns() < end) sched_yield();
        if (!looked) readable = sleep_for(memory.head, index, pipe_fd, other, ms);
        Py_END_ALLOW_THREADS;
    }
    const int there = ring && held_bytes(ring) != 0;
    PyBuffer_Release(&memory.buffer);
    if (ring == NULL || PyErr_CheckSignals() < 0) return NULL;
    return Py_BuildValue("(OOO)", looked ? Py_True : Py_False, there ? Py_True : Py_False,
                         readable ? Py_True : Py_False);
}

/* full(memory) -> a ring that is crowded, or None. */
static PyObject *full(PyObject *self, PyObject *args) {
    Memory memory;
    long found = -1;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&", take_memory, &memory)) return NULL;
    for (unsigned i = 0; found < 0 && i < memory.head->rings; i++)
        if (crowded(memory.head, ring_of(memory.head, i))) found = i;
    PyBuffer_Release(&memory.buffer);
    return found < 0 ? Py_NewRef(Py_None) : PyLong_FromLong(found);
}

PyMethodDef ring_functions[] = {
    {"lay_out", lay_out, METH_VARARGS, NULL}, {"put", put, METH_VARARGS, NULL},
    {"take", take, METH_VARARGS, NULL},       {"take_of", take_of, METH_VARARGS, NULL},
    {"skip", skip, METH_VARARGS, NULL},       {"listen", listen, METH_VARARGS, NULL},
    {"sleep", sleep_, METH_VARARGS, NULL},    {"full", full, METH_VARARGS, NULL},
    {"holds", holds, METH_VARARGS, NULL},     {"wait_for", wait_for, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
