// Calls on float32 arrays that are made contiguous first: losses of a batch, with their gradients.
#pragma once

#include <string>
#include <vector>

#include "binding/bind.h"

namespace fastrl {

// The arrays of one call, by name in the error texts. `letters`: what lengths that may be any are called there.
class Call {
 public:
  explicit Call(const char* op, const char* letters = "BCD") : op_(op), letters_(letters) {}

  // A float32 array of the shape wanted, as contiguous numbers. `optional`: a last dimension of 1 may follow.
  struct Floats {
    Array array;
    std::vector<float> copy;
    const float* data = nullptr;
  };
  Floats floats(py::handle x, const char* name, std::initializer_list<int64_t> shape, bool optional = false) const {
    Floats f;
    const std::string where = std::string(op_) + ": " + name;
    f.array = load_cpu(x.ptr(), where.c_str(), {DType::f32});
    const Array& a = f.array;
    const int n = static_cast<int>(shape.size());
    const bool fits = (a.ndim == n || (optional && a.ndim == n + 1 && a.shape[n] == 1)) &&
                      std::equal(shape.begin(), shape.end(), a.shape.begin(),
                                 [](int64_t wanted, int64_t got) { return wanted < 0 || wanted == got; });
    if (!fits) raise_value(where + " must have shape " + text(shape) + ", got " + shape_text(a.shape, a.ndim));
    f.data = reinterpret_cast<const float*>(a.data);
    if (!a.is_contiguous() || !a.aligned) {
      f.copy.resize(static_cast<size_t>(a.size()));
      const int64_t columns = a.ndim > 1 ? a.size() / std::max<int64_t>(a.shape[0], 1) : 1;
      for (int64_t i = 0; i < a.size(); ++i) {
        const int64_t r = i / columns, c = i % columns;
        const char* from = a.data + r * a.strides[0];
        if (a.ndim == 2) from += c * a.strides[1];
        if (a.ndim == 3) from += c / a.shape[2] * a.strides[1] + c % a.shape[2] * a.strides[2];
        std::memcpy(&f.copy[static_cast<size_t>(i)], from, sizeof(float));
      }
      f.data = f.copy.data();
    }
    return f;
  }
  Floats maybe(py::handle x, const char* name, std::initializer_list<int64_t> shape, bool optional = false) const {
    return x.is_none() ? Floats{} : floats(x, name, shape, optional);
  }

  // Whole numbers [rows], each below n.
  Contiguous<int64_t> actions(py::handle x, int64_t rows, int64_t n) const {
    const std::string where = std::string(op_) + ": actions";
    const Array a = load_cpu(x.ptr(), where.c_str(), {DType::i64, DType::i32});
    if (a.ndim != 1 || a.shape[0] != rows)
      raise_value(where + " must have shape (" + std::to_string(rows) + ",), got " + shape_text(a.shape, a.ndim));
    Contiguous<int64_t> c(a, true);
    for (int64_t i = 0; i < rows; ++i)
      if (c.data()[i] < 0 || c.data()[i] >= n)
        throw py::index_error(where + "[" + std::to_string(i) + "] must be in [0, " + std::to_string(n) + "), got " +
                              std::to_string(c.data()[i]));
    return c;
  }

  // At least one row: there is no mean of none.
  void check_rows(int64_t rows, const char* name) const {
    if (rows < 1) raise_value(std::string(op_) + ": " + name + " must have at least one row");
  }

 private:
  std::string text(std::initializer_list<int64_t> shape) const {
    bool open = false;
    for (int64_t n : shape) open |= n < 0;
    std::string out = open ? "[" : "(";
    size_t i = 0;
    for (int64_t n : shape) {
      out += n < 0 ? std::string(1, letters_[i]) : std::to_string(n);
      if (++i < shape.size()) out += ", ";
    }
    if (!open && shape.size() == 1) out += ",";
    return out + (open ? "]" : ")");
  }
  const char *op_, *letters_;
};

// A float32 result of the shape and kind of an argument.
struct Out {
  Result result;
  float* data;
  explicit Out(const Array& like)
      : result(allocate_like(like, DType::f32, like.shape.data(), like.ndim)),
        data(reinterpret_cast<float*>(result.data)) {}
  py::object take(const Array& like) { return hand_back(std::move(result), like); }
};

}  // namespace fastrl
