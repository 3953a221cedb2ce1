// SPDX-License-Identifier: Apache-2.0
// paceline._C: the module. The only exported symbol is PyInit__C.
#include "bind.h"

static int exec_module(PyObject *module) {
    int (*const parts[])(PyObject *) = {
        pl_bind_tensor, pl_bind_create,  pl_bind_random,   pl_bind_ops,   pl_bind_shapes,
        pl_bind_nn,     pl_bind_loss,    pl_bind_autograd, pl_bind_optim, pl_bind_data,
        pl_bind_rows,   pl_bind_runtime, pl_bind_trace,    pl_bind_group, pl_bind_reducer,
        pl_bind_dlpack, pl_bind_device,  pl_bind_stream,
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (parts[i](module)) return -1;
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)(uintptr_t)exec_module},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "paceline._C",
    .m_doc = "The private binding of paceline's C core.",
    .m_size = 0,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__C(void);
PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&definition); }
