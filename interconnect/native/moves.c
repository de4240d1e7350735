/* A chip's moves at native speed: frames out to rings, and frames from rings into memory.

   Ports are the rings at one node: its own, and those of its peers that it may write to. Moves are
   some sends and receives that follow one another in a program, bound to ports and to the chip's
   memory. run() does them in order and stops at the first that is not as usual: then nothing of it
   has happened, and Python (interconnect/transport.py, rack/run/node.py, chip/run/chip.py) does it,
   or refuses it.

   A frame that is written here is as interconnect/frame.py encodes it, with every number in nine
   bytes; only frames of that form are read here. A receive is as usual if the frame is the very one
   that the program wants, and if it arrives in time by the link's own arithmetic, which is that of
   interconnect/link.py. A link's words are in memory that both share: busy_until and carried, which
   are that model's, then the step and transfer of what was taken last. */

#include "rings.h"

#include <errno.h>
#include <unistd.h>

#define FIELDS 9             /* version, flags, epoch, link, step, transfer, vectors, depart, check */
#define HEADER (1 + 9 * FIELDS)
#define PREFIX (2 + HEADER)  /* 'F', the header's length, the header */
#define VERSION 1
#define ARRAY (0x90 | FIELDS) /* msgpack: an array of so many */
#define U64 0xcf              /* msgpack: eight bytes follow, the highest first */
#define VECTOR_BYTES 320
#define MOST_NODES (1u << 20)
#define LATEST (INT64_MAX / 4) /* beyond, cycles are left to Python's integers */

enum { EPOCH = 2, LINK, STEP, TRANSFER, VECTORS, DEPART, CHECK };

/* ---- ports */

typedef struct { /* a ring of a peer's; no head: none */
    Py_buffer buffer;
    Head *head;
    Ring *ring;
    unsigned index;
    int pipe_fd;
} Out;

typedef struct {
    PyObject_HEAD
    Py_buffer buffer; /* our own rings; no head: none */
    Head *head;
    Out *outs; /* by node */
    unsigned nodes;
} Ports;

static void drop(Out *out) {
    if (out->head) PyBuffer_Release(&out->buffer);
    out->head = NULL;
}

static void close_all(Ports *self) {
    for (unsigned i = 0; i < self->nodes; i++) drop(&self->outs[i]);
    if (self->head) PyBuffer_Release(&self->buffer);
    self->head = NULL;
}

/* Ports(memory): of a node with these rings; None for a node without. */
static PyObject *ports_new(PyTypeObject *type, PyObject *args, PyObject *named) {
    PyObject *memory;
    (void)named;
    if (!PyArg_ParseTuple(args, "O", &memory)) return NULL;
    Ports *self = (Ports *)type->tp_alloc(type, 0);
    if (self == NULL || memory == Py_None) return (PyObject *)self;
    if (PyObject_GetBuffer(memory, &self->buffer, PyBUF_WRITABLE) < 0) goto failed;
    self->head = head_of(&self->buffer);
    if (self->head) return (PyObject *)self;
    PyBuffer_Release(&self->buffer);
failed:
    Py_DECREF(self);
    return NULL;
}

static void ports_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    close_all((Ports *)object);
    PyMem_Free(((Ports *)object)->outs);
    type->tp_free(object);
    Py_DECREF(type);
}

static int make_room(Ports *self, unsigned node) {
    if (node < self->nodes) return 0;
    if (node >= MOST_NODES) {
        PyErr_Format(PyExc_ValueError, "ports: wanted a node below %u, got %u", MOST_NODES, node);
        return -1;
    }
    Out *outs = PyMem_Realloc(self->outs, (node + 1) * sizeof(Out));
    if (outs == NULL) return PyErr_NoMemory(), -1;
    memset(outs + self->nodes, 0, (node + 1 - self->nodes) * sizeof(Out));
    self->outs = outs, self->nodes = node + 1;
    return 0;
}

/* join(node, memory, ring, pipe_fd): write to a node's ring from now on. */
static PyObject *ports_join(PyObject *object, PyObject *args) {
    Ports *self = (Ports *)object;
    PyObject *memory;
    Out out = {.head = NULL};
    unsigned node;
    if (!PyArg_ParseTuple(args, "IOIi", &node, &memory, &out.index, &out.pipe_fd)) return NULL;
    if (make_room(self, node) < 0) return NULL;
    if (PyObject_GetBuffer(memory, &out.buffer, PyBUF_WRITABLE) < 0) return NULL;
    out.head = head_of(&out.buffer);
    out.ring = out.head ? ring_of(out.head, out.index) : NULL;
    if (out.ring == NULL) {
        PyBuffer_Release(&out.buffer);
        return NULL;
    }
    drop(&self->outs[node]);
    self->outs[node] = out;
    Py_RETURN_NONE;
}

/* leave(node): write to it no more. */
static PyObject *ports_leave(PyObject *object, PyObject *args) {
    Ports *self = (Ports *)object;
    unsigned node;
    if (!PyArg_ParseTuple(args, "I", &node)) return NULL;
    if (node < self->nodes) drop(&self->outs[node]);
    Py_RETURN_NONE;
}

static PyObject *ports_close(PyObject *self, PyObject *unused) {
    (void)unused;
    close_all((Ports *)self);
    Py_RETURN_NONE;
}

/* ---- moves */

static PyTypeObject *ports_type; /* made with the module */

typedef struct {
    int sends;
    unsigned node;   /* SEND: the peer */
    unsigned ring;   /* RECEIVE: of the peer's frames */
    unsigned row;    /* SEND: whose hash share goes along */
    unsigned word;   /* RECEIVE: the first of the link's words */
    uint64_t link, transfer, vectors;
    uint64_t slot, latency;      /* RECEIVE: of the link */
    int64_t start, end, window;  /* cycles of the program */
    char *memory;
} Move;

typedef struct {
    PyObject_HEAD
    Ports *ports;
    Py_buffer memory, words;
    Move *moves;
    Py_ssize_t count;
} Moves;

typedef struct { /* of one call of run() */
    uint64_t epoch, step;
    int64_t base;
    PyObject *shares;
} Call;

typedef enum { DONE, WAITS, UNUSUAL } Outcome;

static void put_number(unsigned char *header, int field, uint64_t value) {
    unsigned char *at = header + 1 + 9 * field;
    value = __builtin_bswap64(value);
    *at = U64;
    memcpy(at + 1, &value, 8);
}

/* Whether the header has a number of nine bytes there. */
static int get_number(const unsigned char *header, int field, uint64_t *value) {
    const unsigned char *at = header + 1 + 9 * field;
    memcpy(value, at + 1, 8);
    *value = __builtin_bswap64(*value);
    return *at == U64;
}

/* The hash share of a send's row: 0 for a row that the step does not have. */
static uint64_t share_of(const Call *call, unsigned row) {
    if (row >= (size_t)PyList_GET_SIZE(call->shares)) return 0;
    return PyLong_AsUnsignedLongLongMask(PyList_GET_ITEM(call->shares, row));
}

static Outcome send_one(const Moves *self, const Move *move, const Call *call) {
    const Ports *ports = self->ports;
    const Out *out = move->node < ports->nodes ? &ports->outs[move->node] : NULL;
    if (out == NULL || out->head == NULL) return UNUSUAL;
    Ring *ring = out->ring;
    const uint32_t capacity = out->head->capacity;
    const uint64_t size = move->vectors * VECTOR_BYTES;
    const uint64_t last = atomic_load_explicit(&ring->last, memory_order_relaxed);
    const uint64_t end = last + padded(4 + PREFIX + size);
    const uint64_t first = atomic_load_explicit(&ring->first, memory_order_acquire);
    if (end + 8 - first > capacity) return UNUSUAL;  /* the last 8 bytes are a mark's */
    unsigned char prefix[4 + PREFIX], *header = prefix + 6;
    const uint32_t length = (uint32_t)(PREFIX + size);
    const uint64_t numbers[FIELDS] = {
        VERSION, 0, call->epoch, move->link, call->step, move->transfer, move->vectors,
        (uint64_t)(call->base + move->start), share_of(call, move->row)};
    memcpy(prefix, &length, 4);
    prefix[4] = 'F', prefix[5] = HEADER, header[0] = ARRAY;
    for (int field = 0; field < FIELDS; field++) put_number(header, field, numbers[field]);
    write_at(ring, capacity, last, prefix, sizeof prefix);
    write_at(ring, capacity, last + sizeof prefix, move->memory, size);
    if (publish(out->head, ring, out->index, end)) {
        /* A full pipe wakes the reader as well; one that is gone reads nothing any more. */
        while (write(out->pipe_fd, "", 1) < 0 && errno == EINTR) continue;
    }
    return DONE;
}

static int within(int64_t wanted, uint64_t came, const Call *call, int64_t window) {
    const int64_t early = wanted - ((int64_t)came - call->base);
    return early >= 0 && early <= window;
}

/* Read a frame's header: whether it is of our form, of this request and step, and the move's. */
static int wanted(const unsigned char *prefix, const Move *move, const Call *call, uint64_t *depart) {
    const unsigned char *header = prefix + 2;
    const uint64_t numbers[FIELDS] = {VERSION, 0, call->epoch, move->link, call->step,
                                      move->transfer, move->vectors, 0, 0};
    if (prefix[0] != 'F' || prefix[1] != HEADER || header[0] != ARRAY) return 0;
    for (int field = 0; field < FIELDS; field++) {
        uint64_t value;
        if (!get_number(header, field, &value)) return 0;
        if (field == DEPART) *depart = value;
        else if (value != numbers[field]) return 0;
    }
    return *depart <= LATEST;
}

static Outcome receive_one(const Moves *self, const Move *move, const Call *call) {
    const Head *head = self->ports->head;
    if (head == NULL) return UNUSUAL;
    Ring *ring = ring_of(self->ports->head, move->ring);
    const uint32_t capacity = head->capacity;
    const uint64_t size = move->vectors * VECTOR_BYTES;
    const uint64_t first = atomic_load_explicit(&ring->first, memory_order_relaxed);
    if (first == atomic_load_explicit(&ring->last, memory_order_acquire)) return WAITS;
    unsigned char prefix[PREFIX];
    uint32_t length;
    read_at(ring, capacity, first, &length, 4);
    if (length != PREFIX + size) return UNUSUAL;
    read_at(ring, capacity, first + 4, prefix, PREFIX);
    uint64_t depart;
    if (!wanted(prefix, move, call, &depart)) return UNUSUAL;

    uint64_t *words = (uint64_t *)self->words.buf + move->word;
    const uint64_t start = depart > words[0] ? depart : words[0];
    if (start > LATEST) return UNUSUAL;
    const uint64_t busy = start + move->vectors * move->slot;
    if (!within(move->start, start + move->slot + move->latency, call, move->window) ||
        !within(move->end, busy + move->latency, call, move->window))
        return UNUSUAL;
    words[0] = busy;
    words[1] += move->vectors;
    words[2] = call->step, words[3] = move->transfer;
    read_at(ring, capacity, first + 4 + PREFIX, move->memory, size);
    release(ring, first + padded(4 + (uint64_t)length));
    return DONE;
}

/* Of the receives from `place` to the next send, the last whose ring is empty: whoever waits for it
   is woken less often than by each frame, and none of them could be left out. */
static unsigned last_missing(const Moves *self, Py_ssize_t place, Py_ssize_t stop) {
    unsigned found = self->moves[place].ring;
    for (; place < stop && !self->moves[place].sends; place++) {
        const unsigned ring = self->moves[place].ring;
        if (!held_bytes(ring_of(self->ports->head, ring))) found = ring;
    }
    return found;
}

/* run(place, stop, epoch, step, base, shares) -> (place, ring): the first move from `place` on that
   is not done, or `stop`. If it is a receive whose ring is empty, a ring to wait for; or None. */
static PyObject *moves_run(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    Moves *self = (Moves *)object;
    if (n != 6 || !PyList_Check(args[5])) {
        PyErr_SetString(PyExc_TypeError, "run: wanted five numbers and a list");
        return NULL;
    }
    Py_ssize_t place = PyLong_AsSsize_t(args[0]);
    const Py_ssize_t stop = PyLong_AsSsize_t(args[1]);
    const Call call = {
        .epoch = PyLong_AsUnsignedLongLong(args[2]), .step = PyLong_AsUnsignedLongLong(args[3]),
        .base = PyLong_AsLongLong(args[4]), .shares = args[5]};
    if (PyErr_Occurred()) return NULL;
    if (place < 0 || stop > self->count || call.base < 0 || call.base > LATEST) {
        PyErr_Format(PyExc_ValueError, "run: wanted moves 0 to %zd and a base to 2^61, got %zd to "
                     "%zd and %lld", self->count, place, stop, (long long)call.base);
        return NULL;
    }
    Outcome outcome = DONE;
    for (; place < stop; place++) {
        const Move *move = &self->moves[place];
        outcome = move->sends ? send_one(self, move, &call) : receive_one(self, move, &call);
        if (outcome != DONE) break;
    }
    if (outcome != WAITS) return Py_BuildValue("(nO)", place, Py_None);
    return Py_BuildValue("(nI)", place, last_missing(self, place, stop));
}

/* Take one move: (sends, node or ring, link, transfer, vectors, address, start, end, row) of a send;
   of a receive, window, word, slot and latency instead of the row. */
static int take_move(Moves *self, PyObject *item, Move *move) {
    unsigned long long address;
    long long start, end, window = 0;
    unsigned peer, last, slot = 0, latency = 0;
    if (!PyArg_ParseTuple(item, "pIKKKKLLI|LII;moves: wanted numbers", &move->sends, &peer,
                          &move->link, &move->transfer, &move->vectors, &address, &start, &end,
                          &last, &window, &slot, &latency))
        return -1;
    const uint64_t size = (uint64_t)self->memory.len, words = (uint64_t)self->words.len / 8;
    if (move->vectors < 1 || move->vectors > size / VECTOR_BYTES ||
        address > size - move->vectors * VECTOR_BYTES || start < 0 || start > LATEST || end < 0 ||
        end > LATEST || window < 0 || window > LATEST || (!move->sends && last + 4 > words) ||
        (!move->sends && (self->ports->head == NULL || peer >= self->ports->head->rings))) {
        PyErr_Format(PyExc_ValueError, "moves: wanted vectors in memory, cycles to 2^61, a ring and "
                     "the link's words, got %R", item);
        return -1;
    }
    move->node = move->ring = peer, move->row = move->word = last;
    move->slot = slot, move->latency = latency;
    move->start = start, move->end = end, move->window = window;
    move->memory = (char *)self->memory.buf + address;
    return 0;
}

/* Moves(ports, memory, words, moves) */
static PyObject *moves_new(PyTypeObject *type, PyObject *args, PyObject *named) {
    PyObject *ports, *memory, *words, *list;
    (void)named;
    if (!PyArg_ParseTuple(args, "O!OOO!", ports_type, &ports, &memory, &words, &PyList_Type, &list))
        return NULL;
    Moves *self = (Moves *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->ports = (Ports *)Py_NewRef(ports);
    self->count = PyList_GET_SIZE(list);
    self->moves = PyMem_Calloc((size_t)self->count + 1, sizeof(Move));
    int good = self->moves != NULL;
    if (!good) PyErr_NoMemory();
    good = good && PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) == 0 &&
           PyObject_GetBuffer(words, &self->words, PyBUF_WRITABLE) == 0;
    for (Py_ssize_t i = 0; good && i < self->count; i++)
        good = take_move(self, PyList_GET_ITEM(list, i), &self->moves[i]) == 0;
    if (good) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static void moves_dealloc(PyObject *object) {
    Moves *self = (Moves *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyBuffer_Release(&self->memory), PyBuffer_Release(&self->words);
    PyMem_Free(self->moves);
    Py_XDECREF(self->ports);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyMethodDef ports_methods[] = {
    {"join", ports_join, METH_VARARGS, NULL},
    {"leave", ports_leave, METH_VARARGS, NULL},
    {"close", ports_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef moves_methods[] = {
    {"run", (PyCFunction)(void (*)(void))moves_run, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot ports_slots[] = {
    {Py_tp_new, ports_new}, {Py_tp_dealloc, ports_dealloc}, {Py_tp_methods, ports_methods}, {0, NULL}};
static PyType_Slot moves_slots[] = {
    {Py_tp_new, moves_new}, {Py_tp_dealloc, moves_dealloc}, {Py_tp_methods, moves_methods}, {0, NULL}};

static PyType_Spec ports_spec = {
    "interconnect._rings.Ports", sizeof(Ports), 0, Py_TPFLAGS_DEFAULT, ports_slots};
static PyType_Spec moves_spec = {
    "interconnect._rings.Moves", sizeof(Moves), 0, Py_TPFLAGS_DEFAULT, moves_slots};

int add_moves(PyObject *module) {
    ports_type = (PyTypeObject *)PyType_FromSpec(&ports_spec);
    PyObject *moves_type = PyType_FromSpec(&moves_spec);
    const int good = ports_type && moves_type &&
                     PyModule_AddObjectRef(module, "Ports", (PyObject *)ports_type) == 0 &&
                     PyModule_AddObjectRef(module, "Moves", moves_type) == 0;
    Py_XDECREF(moves_type);
    return good ? 0 : -1;
}
