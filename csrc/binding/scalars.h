// Python's and NumPy's scalars.
#pragma once

#include <pybind11/cast.h>

#include <cstdint>

namespace fastrl {

// Whole numbers and real numbers: Python's and NumPy's scalars; not bool, arrays or str.
bool is_int(PyObject* o);
bool is_real(PyObject* o);

// The number in an array without dimensions (of NumPy, of torch on the CPU, of JAX), or else the object itself.
pybind11::object scalar_of(pybind11::handle o);

// An int beyond float64 becomes inf, which every check refuses by its own text.
double to_double(PyObject* o);

// A Python int beyond int64 is clipped: outside every range, it reads the same.
int64_t to_int64_clipped(PyObject* o);

}  // namespace fastrl
