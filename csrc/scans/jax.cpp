// The scans as handlers of XLA's foreign function interface: fastrl/jax.py registers them with JAX and calls them.
#include <algorithm>
#include <vector>

#include "binding/xla_call.h"
#include "scans/scans.h"

namespace fastrl {
namespace {

// One call. Arguments are the floats, terminated, and those of truncated, mask and cut that bits of `flags` name, each
// [..., T, N] or, with `rank` 1, [..., T]; what is before T is a batch.
class Call : public xla::Call {
 public:
  explicit Call(const xla::CallFrame& frame) : xla::Call(frame), rank_(whole("rank")), flags_(whole("flags")) {
    const xla::Buffer& first = argument(0);
    if (first.dtype != xla::kF32 && first.dtype != xla::kF64) throw std::invalid_argument("not float32 or float64");
    if (first.rank < rank_) throw std::invalid_argument("wrong rank");
    const int64_t* last = first.dims + first.rank;
    data_.T = last[-rank_], data_.N = rank_ == 2 ? last[-1] : 1;
    for (int64_t d = 0; d < first.rank - rank_; ++d) batch_ *= first.dims[d];
    item_ = first.dtype == xla::kF32 ? 4 : 8;
  }

  bool has_next_values() const { return flags_ & 8; }

  template <class Op>
  void scan(const Op& op) {
    each(Op::kInputs, Op::kOutputs, [&] {
      item_ == 4 ? fastrl::scan<float>(op, data_, Threads(1)) : fastrl::scan<double>(op, data_, Threads(1));
    });
  }

  void n_step_returns() {
    const double gamma = number("gamma");
    const int64_t n = whole("n"), count = batch_ * data_.T * data_.N;
    const xla::Buffer& last = result(2);
    if (last.dtype == xla::kS64) last_ = static_cast<int64_t*>(last.data);
    std::vector<int64_t> wide(last_ ? 0 : count);  // without jax_enable_x64 there is no int64
    if (!last_) last_ = wide.data();
    each(has_next_values() ? 2 : 1, 2, [&] {
      item_ == 4 ? fastrl::n_step_returns<float>(data_, gamma, n, Threads(1))
                 : fastrl::n_step_returns<double>(data_, gamma, n, Threads(1));
    });
    if (!wide.empty()) std::copy(wide.begin(), wide.end(), static_cast<int32_t*>(last.data));
  }

 private:
  template <class F>
  void each(int inputs, int outputs, const F& f) {
    if (batch_ * data_.T * data_.N == 0) return;
    for (int64_t b = 0; b < batch_; ++b) {
      int next = 0;
      for (int k = 0; k < inputs; ++k) data_.in[k] = view(argument(next++), b, item_);
      data_.terminated = view(argument(next++), b, 1);
      data_.truncated = flags_ & 1 ? view(argument(next++), b, 1) : data_.terminated;
      if (flags_ & 2) data_.mask = view(argument(next++), b, 1);
      if (flags_ & 4) data_.cut = view(argument(next++), b, 1);
      for (int k = 0; k < outputs; ++k) data_.out[k] = view(result(k), b, item_);
      if (last_) data_.out[2] = {reinterpret_cast<char*>(last_ + b * data_.T * data_.N), data_.N * 8, 8};
      f();
    }
  }

  ScanArray view(const xla::Buffer& buffer, int64_t b, int64_t item) const {
    return {static_cast<char*>(buffer.data) + b * data_.T * data_.N * item, data_.N * item, item};
  }

  const int64_t rank_, flags_;
  ScanData data_;
  int64_t batch_ = 1, item_ = 0;
  int64_t* last_ = nullptr;
};

void reverse_affine_scan(Call& c) { c.scan(AffineScan<double>{}); }
void gae(Call& c) { c.scan(Gae<double>{c.number("gamma"), c.number("continuation")}); }
void lambda_returns(Call& c) { c.scan(LambdaReturns<double>{c.number("gamma"), c.number("continuation")}); }
void discounted_returns(Call& c) {
  const double gamma = c.number("gamma");
  c.has_next_values() ? c.scan(LambdaReturns<double>{gamma, gamma}) : c.scan(RewardsToGo<double>{gamma, gamma});
}
void n_step_returns(Call& c) { c.n_step_returns(); }
void vtrace(Call& c) {
  const double gamma = c.number("gamma");
  c.scan(
      VTrace<double>{gamma, gamma, c.number("lam"), c.number("rho_clip"), c.number("c_clip"), c.number("pg_rho_clip")});
}
void off_policy_returns(Call& c) {
  const double gamma = c.number("gamma");
  c.scan(OffPolicyReturns<double>{gamma, gamma});
}

using xla::handle;
using xla::Handler;
const Handler handlers[] = {
    {"reverse_affine_scan", &handle<Call, reverse_affine_scan>},
    {"gae", &handle<Call, gae>},
    {"lambda_returns", &handle<Call, lambda_returns>},
    {"discounted_returns", &handle<Call, discounted_returns>},
    {"n_step_returns", &handle<Call, n_step_returns>},
    {"vtrace", &handle<Call, vtrace>},
    {"off_policy_returns", &handle<Call, off_policy_returns>},
};

}  // namespace
}  // namespace fastrl
