// Results, allocated in the caller's framework.
#pragma once

#include "binding/array.h"

namespace fastrl {

struct Result {
  py::object object;
  char* data = nullptr;
};

template <class T>
T* data_of(const Result& r) {
  return reinterpret_cast<T*>(r.data);
}

// Steals the reference to `descr`.
Result allocate_numpy(PyObject* descr, const int64_t* shape, int ndim);

Result allocate_numpy(DType dtype, const int64_t* shape, int ndim);

Result allocate_exchange(const DLPackExchangeAPI* api, DLDevice device, DLDataType dtype, const int64_t* shape,
                         int ndim);

// A new C-contiguous array of the kind and on the device of `like`. A result for a capsule's owner is NumPy until
// `hand_back` wraps it.
Result allocate_like(const Array& like, DType dtype, const int64_t* shape, int ndim);

// The finished result as the caller's kind of array.
py::object hand_back(Result&& result, const Array& like);

}  // namespace fastrl
