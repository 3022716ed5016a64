// NumPy's arrays as they lie in memory, without NumPy's headers; the beginnings are the same in NumPy 1 and 2.
#pragma once

#include <pybind11/pytypes.h>

namespace fastrl {

struct NumpyDescr {
  PyObject_HEAD PyObject* type;
  char kind, code, byteorder, flags;
  int type_num;

  bool is_native() const { return byteorder == '=' || byteorder == '|'; }
};

struct NumpyArray {
  PyObject_HEAD char* data;
  int nd;
  Py_ssize_t *dimensions, *strides;
  PyObject* base;
  NumpyDescr* descr;
  int flags;

  bool is_contiguous() const { return flags & 1; }  // in C order
  bool is_aligned() const { return flags & 0x100; }
  bool is_writable() const { return flags & 0x400; }
};

inline const NumpyArray* numpy_array(PyObject* o) { return reinterpret_cast<const NumpyArray*>(o); }

// numpy.ndarray; set when the module is imported, as a static of a function would be locked in a forked child.
extern PyTypeObject* numpy_array_type;

// Subclasses may mean more than their memory, as masked arrays do.
inline bool is_numpy(PyObject* o) { return PyObject_TypeCheck(o, numpy_array_type); }
inline bool is_plain_numpy(PyObject* o) { return Py_TYPE(o) == numpy_array_type; }

}  // namespace fastrl
