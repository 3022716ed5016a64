// What the files of bindings share: the module's thread count, Python scalars, and one function a family of ops that
// adds it to the module.
#pragma once

#include "arrays.h"

namespace fastrl {

int num_threads();

// Waking the pool costs about 50 us: only above about 200 us of work are other threads asked.
inline int threads_for(double microseconds) { return microseconds < 200 ? 1 : num_threads(); }

// Whole numbers and real numbers: Python's and NumPy's scalars; not bool, arrays or str.
bool is_int(PyObject* o);
bool is_real(PyObject* o);

// An int beyond float64 becomes inf, which every check refuses by its own text.
double to_double(PyObject* o);

// A Python int beyond int64 is clipped: outside every range, it reads the same.
int64_t to_int64_clipped(PyObject* o);

void bind_conjugate_gradient(py::module_& m);
void bind_adam(py::module_& m);
void bind_gather_rows(py::module_& m);
void bind_heads(py::module_& m);
void bind_mlp(py::module_& m);
void bind_mlp_fisher(py::module_& m);
void bind_n_step_gather(py::module_& m);
void bind_scans(py::module_& m);
void bind_sum_tree(py::module_& m);
void bind_tanh_normal(py::module_& m);

}  // namespace fastrl
