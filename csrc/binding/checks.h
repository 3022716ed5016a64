// The checks of arguments that the ops share, each with its words. `where` is "<op>: <argument>".
#pragma once

#include <algorithm>
#include <initializer_list>

#include "binding/load.h"

namespace fastrl {

// Each in line, and its words elsewhere.
[[noreturn]] void raise_not_on_cpu(const Array& a, const char* where);
[[noreturn]] void raise_dtype(const Array& a, const char* where, std::initializer_list<DType> allowed);
[[noreturn]] void raise_shape(const Array& a, const char* where, const Array& like, const char* like_name);

inline void check_cpu(const Array& a, const char* where) {
  if (a.device.device_type != kDLCPU && a.device.device_type != kDLCUDAHost) raise_not_on_cpu(a, where);
}

inline void check_dtype(const Array& a, const char* where, std::initializer_list<DType> allowed) {
  for (DType t : allowed)
    if (a.dtype == t) return;
  raise_dtype(a, where, allowed);
}

inline void check_has_data(const Array& a, const char* where) {
  if (!a.data && a.size() > 0) raise_no_data(a.object, where);
}

// The usual load of a CPU kernel's argument.
Array load_cpu(PyObject* object, const char* where, std::initializer_list<DType> allowed);

void check_ndim_1(const Array& a, const char* where);

inline void check_shape_like(const Array& a, const char* where, const Array& like, const char* like_name) {
  if (a.ndim != like.ndim || !std::equal(a.shape.begin(), a.shape.begin() + a.ndim, like.shape.begin()))
    raise_shape(a, where, like, like_name);
}

// All arrays of a call are of one kind: nobody finds a result in the framework that was not meant.
void check_kind_like(const Array& a, const char* where, const Array& like, const char* like_name);

void check_dtype_like(const Array& a, const char* where, const Array& like, const char* like_name);

}  // namespace fastrl
