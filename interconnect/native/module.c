/* The module: the functions of rings.c, and the types of moves.c. */

#include "rings.h"

static PyObject *sources(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyUnicode_FromString(LPU_SOURCES);
}

static PyMethodDef methods[] = {
    {"sources", sources, METH_NOARGS, "Return the digest of what this is made of (setup.py)."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_rings", "Rings of messages in shared memory.", -1, methods,
    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rings(void) {
    PyObject *made = PyModule_Create(&module);
    if (made && (PyModule_AddFunctions(made, ring_functions) < 0 || add_moves(made) < 0))
        Py_CLEAR(made);
    return made;
}
