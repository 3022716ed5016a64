// Small 1-D inputs as contiguous numbers of one type.
#pragma once

#include <cstring>
#include <type_traits>
#include <vector>

#include "binding/array.h"

namespace fastrl {

// A 1-D array as contiguous numbers of one type: its own memory where that fits, else a copy of B numbers. `copy` asks
// for a copy in any case, for what is checked first and used after: another thread may write to the caller's array
// meanwhile.
template <class T>
class Contiguous {
 public:
  explicit Contiguous(const Array& a, bool copy = false) : n_(a.shape[0]) {
    if (!copy && a.aligned && is<T>(a.dtype) && (a.strides[0] == sizeof(T) || n_ <= 1)) {
      data_ = reinterpret_cast<const T*>(a.data);
      return;
    }
    copy_.resize(n_);
    switch (a.dtype) {
      case DType::i64:
        fill<int64_t>(a);
        break;
      case DType::i32:
        fill<int32_t>(a);
        break;
      case DType::f64:
        fill<double>(a);
        break;
      case DType::f32:
        fill<float>(a);
        break;
      default:
        break;  // excluded by check_dtype
    }
    data_ = copy_.data();
  }
  explicit Contiguous(T scalar) : n_(1), copy_(1, scalar), data_(copy_.data()) {}
  Contiguous(int64_t n, T scalar) : n_(n), copy_(n, scalar), data_(copy_.data()) {}
  const T* data() const { return data_; }
  int64_t size() const { return n_; }

 private:
  template <class U>
  static bool is(DType t) {
    return t == (std::is_same<U, int64_t>::value  ? DType::i64
                 : std::is_same<U, double>::value ? DType::f64
                                                  : DType::f32);
  }
  template <class U>
  void fill(const Array& a) {
    for (int64_t i = 0; i < n_; ++i) {
      U x;
      std::memcpy(&x, a.data + i * a.strides[0], sizeof x);
      copy_[i] = static_cast<T>(x);
    }
  }
  int64_t n_;
  std::vector<T> copy_;
  const T* data_ = nullptr;
};

}  // namespace fastrl
