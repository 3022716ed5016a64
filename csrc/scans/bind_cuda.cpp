#include "binding/bind_cuda.h"
#include "scans/bind.h"
#include "scans/cuda.h"

namespace fastrl {
namespace {

struct Cuda {
  static constexpr bool kChecksFlags = false;  // that would wait for the device
  static std::initializer_list<DType> floats() {
    static constexpr std::initializer_list<DType> dtypes = {DType::f32, DType::f64, DType::f16, DType::bf16};
    return dtypes;
  }

  static Array load(py::handle object, const char* where, const Array* first, const char* first_name,
                    std::initializer_list<DType> allowed) {
    return load_cuda(object, where, first, first_name, allowed);
  }

  // The kernels read bytes: of other dtypes torch makes them, on the caller's stream.
  static Array load_flags(py::handle object, const char* where, const Array& first, const char* first_name,
                          std::vector<py::object>& kept) {
    Array a = load_cuda(object, where, &first, first_name, {});
    check_flag_dtype(a, where);
    if (a.dtype == DType::boolean || a.dtype == DType::u8) return a;
    kept.push_back(object.attr("ne")(0));
    return load_cuda(kept.back(), where, &first, first_name, {DType::boolean});
  }

  static int64_t find_bad_flag(const ScanArray&, int64_t, int64_t) { return -1; }

  template <class Op>
  static void scan(const Op& op, const ScanData& data, const Array& first, const std::string& name, double) {
    launch_on(first.api, first.device, name.c_str(),
              [&](cudaStream_t stream) { return cuda_scan(op, cuda_float(first.dtype), data, stream); });
  }

  static void n_step_returns(const ScanData& data, double gamma, int64_t n, const Array& first,
                             const std::string& name) {
    launch_on(first.api, first.device, name.c_str(), [&](cudaStream_t stream) {
      return cuda_n_step_returns(data, cuda_float(first.dtype), gamma, n, stream);
    });
  }
};

void bind(py::handle m) { bind_scan_ops<Cuda>(m); }

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
