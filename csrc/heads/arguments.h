// How the arguments of the policy heads are checked, in whichever memory; the texts are those of fastrl/kernels.
#pragma once

#include <string>

#include "binding/checks.h"
#include "heads/columns.h"

namespace fastrl {

inline void check_rows(const Array& a, const std::string& where, int64_t rows) {
  if (a.ndim != 1 || a.shape[0] != rows)
    raise_value(where + " must have shape (" + std::to_string(rows) + ",), got " + shape_text(a.shape, a.ndim));
}

// `Device::load(object, where, first, first_name)` is what differs: the dtypes that are taken, and what an array has in
// common with `first` (null: it is the first one). `where` is "<op>: <argument>".
template <class Device>
struct HeadArguments {
  static Array first(py::handle x, const std::string& where) { return Device::load(x, where.c_str(), nullptr, ""); }

  static Array like(py::handle x, const std::string& where, const Array& first, const char* first_name) {
    Array a = Device::load(x, where.c_str(), &first, first_name);
    check_dtype_like(a, where.c_str(), first, first_name);
    return a;
  }

  // [B, K].
  static Array logits(py::handle x, const std::string& where) {
    Array a = first(x, where);
    if (a.ndim != 2 || a.shape[1] < 1)
      raise_value(where + " must have shape [B, K] with K >= 1, got " + shape_text(a.shape, a.ndim));
    return a;
  }

  // [B, A], and what is like it.
  static Array mean(py::handle x, const std::string& where) {
    Array a = first(x, where);
    if (a.ndim != 2) raise_value(where + " must have shape [B, A], got " + shape_text(a.shape, a.ndim));
    return a;
  }

  static Array matrix(py::handle x, const std::string& where, const Array& first, const char* first_name) {
    Array a = like(x, where, first, first_name);
    check_shape_like(a, where.c_str(), first, first_name);
    return a;
  }

  static Array log_std(py::handle x, const std::string& where, const Array& first, const char* first_name) {
    Array a = like(x, where, first, first_name);
    check_log_std(a, where, first.shape.data(), first_name);
    return a;
  }

  // [A] or [B, A], for a `shape` [B, A].
  static void check_log_std(const Array& a, const std::string& where, const int64_t* shape, const char* like_name) {
    const bool shared = a.ndim == 1 && a.shape[0] == shape[1];
    if (!shared && !(a.ndim == 2 && a.shape[0] == shape[0] && a.shape[1] == shape[1]))
      raise_value(where + " must have shape (" + std::to_string(shape[1]) + ",) or " + shape_text(shape, 2) + " like " +
                  like_name + ", got " + shape_text(a.shape, a.ndim));
  }

  // The gradient of the action, for what a forward pass kept: [2, B, A].
  static Array grad_action(py::handle x, const std::string& where, const Array& first, const char* first_name,
                           const Array& saved) {
    Array a = like(x, where, first, first_name);
    const int64_t* shape = saved.shape.data() + 1;
    if (a.ndim != 2 || a.shape[0] != shape[0] || a.shape[1] != shape[1])
      raise_value(where + " must have shape " + shape_text(shape, 2) + " like saved, got " +
                  shape_text(a.shape, a.ndim));
    return a;
  }

  // A gradient [B].
  static Array rows(py::handle x, const std::string& where, const Array& first, const char* first_name, int64_t rows) {
    Array a = like(x, where, first, first_name);
    check_rows(a, where, rows);
    return a;
  }
};

inline Columns columns_of(const Array& a) {
  return a.ndim == 1 ? Columns{a.data, 0, a.strides[0]} : Columns{a.data, a.strides[0], a.strides[1]};
}

}  // namespace fastrl
