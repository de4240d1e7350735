/* chip.kernels._native: the module, and the choice of an instruction set. */

#include "module.h"

static const Table *const tables[] = {
    &table_portable,
#if defined(LPU_X86)
    &table_avx2,
    &table_avx512,
#endif
    &table_emulated,
};

#define TABLES ((Py_ssize_t)(sizeof tables / sizeof *tables))

static int runs_here(const Table *table) {
#if defined(LPU_X86)
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                     __builtin_cpu_supports("f16c");
    if (table == &table_avx2) return avx2;
    if (table == &table_avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
#endif
    return table != NULL;
}

static const Table *table_of(PyObject *isa) { /* NULL with an exception set */
    const Py_ssize_t i = PyLong_AsSsize_t(isa);
    if (i == -1 && PyErr_Occurred()) return NULL;
    if (i >= 0 && i < TABLES && runs_here(tables[i])) return tables[i];
    PyErr_Format(PyExc_ValueError, "instruction set %zd: not one that runs here", i);
    return NULL;
}

static PyObject *py_instruction_sets(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(unused)) {
    PyObject *names = PyList_New(0);
    for (Py_ssize_t i = 0; names && i < TABLES; i++) {
        if (!runs_here(tables[i])) continue;
        PyObject *pair = Py_BuildValue("(sn)", tables[i]->name, i);
        if (pair == NULL || PyList_Append(names, pair) < 0) Py_CLEAR(names);
        Py_XDECREF(pair);
    }
    return names;
}

static PyObject *py_sources(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(unused)) {
    return PyUnicode_FromString(LPU_SOURCES);
}

/* Call a binding, and give back what it has taken, whether it answers or refuses. */
static PyObject *run(const char *name, Binding *binding, Py_ssize_t needed, Args args,
                     Py_ssize_t given) {
    Call call = {0};
    if (given != needed) {
        PyErr_Format(PyExc_TypeError, "%s: wanted %zd arguments, got %zd", name, needed, given);
        return NULL;
    }
    const Table *table = table_of(args[0]);
    PyObject *result = table ? binding(&call, table, args + 1) : NULL;
    release(&call);
    return result;
}

#define NTH(a, b, c, d, e, f, g, h, i, j, k, l, m, n, ...) n
#define COUNT(...) NTH(__VA_ARGS__, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)

#define FUNCTION(name, ...)                                                             \
    static PyObject *py_##name(PyObject *Py_UNUSED(self), Args args, Py_ssize_t given) { \
        return run(#name, bind_##name, 1 + COUNT(__VA_ARGS__), args, given);            \
    }
FUNCTIONS(FUNCTION)

#define METHOD(name, ...)                                               \
    {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, \
     #name "(isa, " #__VA_ARGS__ ", /)\n--\n\n"},

static PyMethodDef methods[] = {
    {"instruction_sets", py_instruction_sets, METH_NOARGS,
     "Return [(name, number)] of what runs here."},
    {"sources", py_sources, METH_NOARGS, "Return the digest of what this is made of (setup.py)."},
    FUNCTIONS(METHOD){NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_doc = "Native kernels; see native.py.",
    .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__native(void) {
#if defined(LPU_X86)
    __builtin_cpu_init();
#endif
    return PyModuleDef_Init(&definition);
}
