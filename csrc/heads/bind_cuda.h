// What the bindings of the policy heads on a GPU share. `state` is that of a Generator on the same device.
#pragma once

#include <string>

#include "binding/bind_cuda.h"
#include "heads/arguments.h"
#include "heads/cuda.h"

namespace fastrl {

// `dtypes` are the floats that an op takes.
template <DType... dtypes>
struct CudaHead : HeadArguments<CudaHead<dtypes...>> {
  static Array load(py::handle x, const char* where, const Array* first, const char* first_name) {
    return load_cuda(x, where, first, first_name, {dtypes...});
  }

  // A gradient [B] that may be None.
  static RowNumbers row_grad(py::handle g, const std::string& where, const Array& first, const char* first_name,
                             int64_t rows) {
    if (g.is_none()) return {};
    const Array a = CudaHead::rows(g, where, first, first_name, rows);
    return {a.data, a.strides[0]};
  }
};

inline uint64_t* load_cuda_state(py::handle state, const Array& first, const char* first_name) {
  const Array s = load_cuda(state, "generator: state", &first, first_name, {DType::i64});
  if (s.ndim != 1 || s.shape[0] != 3 || s.strides[0] != 8) raise_value("generator: state must be int64 [3]");
  return reinterpret_cast<uint64_t*>(s.data);  // the generator keeps it alive
}

// The gradient of log_std, and what it is summed up in; kept until the kernels are launched.
struct LogStdGrad {
  py::object grad = py::none();
  Result sums;
  template <class Call>
  LogStdGrad(Call& c, const Array& log_std, bool wanted) {
    if (!wanted) return;
    Result r = allocate_like(log_std, log_std.dtype, log_std.shape.data(), log_std.ndim);
    c.grad_log_std = r.data, grad = std::move(r.object);
    if (!c.shared) return;
    const int64_t size = cuda_pieces(c.rows) * c.columns;
    sums = allocate_like(log_std, DType::f64, &size, 1);
    c.sums = reinterpret_cast<double*>(sums.data);
  }
};

// A result like `like`, of `shape` [B, A]; None where it is not wanted.
inline py::object new_matrix(const Array& like, const int64_t* shape, bool wanted, void*& data) {
  if (!wanted) return py::none();
  Result r = allocate_like(like, like.dtype, shape, 2);
  data = r.data;
  return std::move(r.object);
}

template <class Kernel, class Call>
void launch(const std::string& op, Kernel kernel, const Call& c, const Array& first) {
  launch_on(first.api, first.device, op.c_str(), [&](cudaStream_t stream) { return kernel(c, stream); });
}

}  // namespace fastrl
