/* Rings of messages in shared memory: one reader, one ring for each writer (interconnect/rings.py).

   The memory is the reader's: a page of its own words, then for each ring a page with the two ends
   and `capacity` bytes of data. A record is a 32-bit length and the bytes, padded to 8; it may
   wrap. The length MARK is a placeholder for a message that went another way. Ends only grow; each
   has one writer. All shared words are atomic, and data is read or written only after them, so both
   sides agree on any CPU. */

#ifndef LPU_RINGS_H
#define LPU_RINGS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define PAGE 4096
#define MARK 0xFFFFFFFFu

/* What a reader that sleeps wants to be woken by: a message in any ring, or in ring i. A ring that
   is half full wakes it as well. */
enum { AWAKE = 0, ANY_RING = 1, FIRST_RING = 2 /* + i */ };

typedef struct {
    char token[16];
    uint32_t rings, capacity;
    _Alignas(64) _Atomic uint32_t bell;     /* event count: messages put, by all writers */
    _Alignas(64) _Atomic uint32_t sleeping; /* AWAKE, or what wakes the reader */
} Head;

typedef struct {
    _Atomic uint64_t first;              /* the reader's end */
    _Alignas(64) _Atomic uint64_t last;  /* the writer's end */
    _Alignas(PAGE) char data[];
} Ring;

/* The head of a memory that lay_out() has made; NULL with an exception for another one. */
Head *head_of(const Py_buffer *memory);

/* One of its rings; NULL with an exception if there are fewer. */
Ring *ring_of(Head *head, unsigned index);

static inline void write_at(Ring *ring, uint32_t capacity, uint64_t at, const void *from, size_t n) {
    const size_t place = at % capacity, room = capacity - place;
    memcpy(ring->data + place, from, n < room ? n : room);
    if (n > room) memcpy(ring->data, (const char *)from + room, n - room);
}

static inline void read_at(const Ring *ring, uint32_t capacity, uint64_t at, void *to, size_t n) {
    const size_t place = at % capacity, room = capacity - place;
    memcpy(to, ring->data + place, n < room ? n : room);
    if (n > room) memcpy((char *)to + room, ring->data, n - room);
}

static inline uint64_t padded(uint64_t n) { return (n + 7) & ~(uint64_t)7; }

static inline uint64_t held_bytes(const Ring *ring) {
    return atomic_load(&ring->last) - atomic_load_explicit(&ring->first, memory_order_acquire);
}

static inline int crowded(const Head *head, const Ring *ring) {
    return held_bytes(ring) > head->capacity / 2;
}

/* Publish a record that ends at `end`. Returns whether the reader has to be woken. */
static inline int publish(Head *head, Ring *ring, unsigned index, uint64_t end) {
    atomic_store(&ring->last, end);
    atomic_fetch_add(&head->bell, 1);
    const uint32_t wish = atomic_load(&head->sleeping);
    if (wish == AWAKE) return 0;
    if (wish != ANY_RING && wish != FIRST_RING + index && !crowded(head, ring)) return 0;
    return atomic_exchange(&head->sleeping, AWAKE) != AWAKE;
}

/* Give a record back to the writer. */
static inline void release(Ring *ring, uint64_t end) {
    atomic_store_explicit(&ring->first, end, memory_order_release);
}

/* What module.c puts together: the functions of rings.c, and those of moves.c, which adds its types
   to the module (-1 with an exception set). */
extern PyMethodDef ring_functions[];
int add_moves(PyObject *module);

#endif
