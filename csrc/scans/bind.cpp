#include <algorithm>

#include "scans/bind.h"

namespace fastrl {
namespace {

struct Cpu {
  static constexpr bool kChecksFlags = true;
  static std::initializer_list<DType> floats() {
    static constexpr std::initializer_list<DType> dtypes = {DType::f32, DType::f64};
    return dtypes;
  }

  static Array load(py::handle object, const char* where, const Array* first, const char* first_name,
                    std::initializer_list<DType> allowed) {
    Array a = load_cpu(object.ptr(), where, allowed);
    if (first) check_kind_like(a, where, *first, first_name);
    return a;
  }

  static Array load_flags(py::handle object, const char* where, const Array& first, const char* first_name,
                          std::vector<py::object>&) {
    Array a = fastrl::load(object.ptr(), where);
    check_cpu(a, where);
    check_has_data(a, where);
    check_flag_dtype(a, where);
    check_kind_like(a, where, first, first_name);
    return a;
  }

  static int64_t find_bad_flag(const ScanArray& flags, int64_t T, int64_t N) {
    return fastrl::find_bad_flag(flags, T, N);
  }

  template <class Op>
  static void scan(const Op& op, const ScanData& data, const Array& first, const std::string&, double ns_an_item) {
    const Threads threads =
        threads_and_pieces(1e-3 * ns_an_item * static_cast<double>(data.T) * static_cast<double>(data.N));
    ReleaseGil release;
    first.dtype == DType::f32 ? fastrl::scan<float>(op, data, threads) : fastrl::scan<double>(op, data, threads);
  }

  static void n_step_returns(const ScanData& data, double gamma, int64_t n, const Array& first, const std::string&) {
    const double ns_an_item = 2.0 + 0.3 * static_cast<double>(std::min<int64_t>(n, 12));
    const Threads threads =
        threads_and_pieces(1e-3 * ns_an_item * static_cast<double>(data.T) * static_cast<double>(data.N));
    ReleaseGil release;
    first.dtype == DType::f32 ? fastrl::n_step_returns<float>(data, gamma, n, threads)
                              : fastrl::n_step_returns<double>(data, gamma, n, threads);
  }
};

void bind(py::handle m) { bind_scan_ops<Cpu>(m); }

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
