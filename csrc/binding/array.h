// An argument as the kernels see it, {pointer, dtype, shape, strides, device}; the words of errors; the GIL let go.
#pragma once

#include <pybind11/cast.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>

#include "binding/dlpack.h"
#include "binding/dtype.h"

namespace fastrl {

namespace py = pybind11;

constexpr int kMaxDims = 16;

// The kind of array that the caller passed, and so wants back.
enum class Kind : uint8_t { numpy, exchange, capsule };

class Array {
 public:
  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  Array(Array&& other) noexcept { *this = std::move(other); }
  Array& operator=(Array&& other) noexcept {
    std::swap(owner_, other.owner_);
    object = other.object, api = other.api, data = other.data, device = other.device, dl_dtype = other.dl_dtype;
    itemsize = other.itemsize;
    shape = other.shape, strides = other.strides, ndim = other.ndim, dtype = other.dtype, kind = other.kind;
    writable = other.writable, aligned = other.aligned, has_objects = other.has_objects;
    return *this;
  }

  PyObject* object = nullptr;  // borrowed: the caller's argument outlives the call
  const DLPackExchangeAPI* api = nullptr;
  char* data = nullptr;
  DLDevice device{kDLCPU, 0};
  DLDataType dl_dtype{};  // as the framework gave it; unset for NumPy
  int64_t itemsize = 0;
  std::array<int64_t, kMaxDims> shape, strides;  // strides in bytes
  int ndim = 0;
  DType dtype = DType::other;
  Kind kind = Kind::numpy;
  bool writable = true;
  bool aligned = true;
  bool has_objects = false;

  bool is_contiguous() const {
    if (size() == 0) return true;
    int64_t expected = itemsize;
    for (int d = ndim - 1; d >= 0; --d) {
      if (shape[d] != 1 && strides[d] != expected) return false;
      expected *= shape[d];
    }
    return true;
  }
  int64_t size() const {
    int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= shape[d];
    return n;
  }

  // Whether the memory from the first to the last item meets that of `other`.
  bool may_overlap(const Array& other) const {
    const auto mine = extent(), theirs = other.extent();
    return mine.first < theirs.second && theirs.first < mine.second;
  }

  // Whether two items may share memory: each dimension must step over all that the shorter steps reach.
  bool overlaps_itself() const {
    if (is_contiguous()) return false;
    std::array<std::pair<int64_t, int64_t>, kMaxDims> steps;
    int n = 0;
    for (int d = 0; d < ndim; ++d)
      if (shape[d] != 1) steps[n++] = {std::abs(strides[d]), shape[d]};
    std::sort(steps.begin(), steps.begin() + n);
    int64_t reach = itemsize;
    for (int d = 0; d < n; ++d) {
      if (steps[d].first < reach) return true;
      reach += steps[d].first * (steps[d].second - 1);
    }
    return false;
  }

  // Keeps what a DLPack capsule lends until the call is over.
  void own(py::object capsule) { owner_ = std::move(capsule); }

 private:
  std::pair<const char*, const char*> extent() const {
    if (size() == 0) return {nullptr, nullptr};
    const char *first = data, *last = data + itemsize;
    for (int d = 0; d < ndim; ++d) (strides[d] < 0 ? first : last) += strides[d] * (shape[d] - 1);
    return {first, last};
  }

  py::object owner_;
};

// Taking the GIL in an interpreter that is shutting down ends a daemon thread before Python 3.14, by unwinding its
// stack: destructors would touch Python objects without the GIL. Here such a thread sleeps until the process is gone,
// as Python 3.14 has it.
template <class Take>
void take_gil(const Take& take) {
  try {
    take();
  } catch (...) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// Lets go of the GIL around a kernel.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;
  ~ReleaseGil() {
    take_gil([&] { PyEval_RestoreThread(state_); });
  }

 private:
  PyThreadState* state_;
};

// f() without the GIL: for what may wait for a lock that another thread holds for long.
template <class F>
auto without_gil(F f) {
  ReleaseGil release;
  return f();
}

// ---------------------------------------------------------------- errors
[[noreturn]] void raise_type(const std::string& text);
[[noreturn]] void raise_value(const std::string& text);

std::string type_name(PyObject* object);

py::object import_module(const char* name);

// Shortest text that reads back as the same double, as Python writes it.
std::string repr(double x);

template <class Shape>
std::string shape_text(const Shape& shape, int ndim) {
  std::string text = "(";
  for (int d = 0; d < ndim; ++d) text += std::to_string(shape[d]) + (d + 1 < ndim ? ", " : ndim == 1 ? "," : "");
  return text + ")";
}

std::string dtype_text(const Array& a);

std::string device_text(const Array& a);

}  // namespace fastrl
