// The scans as handlers of XLA's foreign function interface: fastrl/jax.py registers them with JAX and calls them.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "binding/bind.h"
#include "binding/xla_ffi.h"
#include "scans/scans.h"

namespace fastrl {
namespace {

// The version that the handlers say they are of: that of the JAX that asks. The layouts are the same in all of them.
int api_version[2] = {0, 0};

// One call. Arguments are the floats, terminated, and those of truncated, mask and cut that bits of `flags` name, each
// [..., T, N] or, with `rank` 1, [..., T]; what is before T is a batch.
class Call {
 public:
  explicit Call(const xla::CallFrame& frame) : frame_(frame), rank_(whole("rank")), flags_(whole("flags")) {
    const xla::Buffer& first = argument(0);
    if (first.dtype != xla::kF32 && first.dtype != xla::kF64) throw std::invalid_argument("not float32 or float64");
    if (first.rank < rank_) throw std::invalid_argument("wrong rank");
    const int64_t* last = first.dims + first.rank;
    data_.T = last[-rank_], data_.N = rank_ == 2 ? last[-1] : 1;
    for (int64_t d = 0; d < first.rank - rank_; ++d) batch_ *= first.dims[d];
    item_ = first.dtype == xla::kF32 ? 4 : 8;
  }

  double number(const char* name) const { return attribute<double>(name, xla::kF64); }
  int64_t whole(const char* name) const { return attribute<int64_t>(name, xla::kS64); }
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

  const xla::Buffer& argument(int64_t k) const { return at(frame_.arguments, k); }
  const xla::Buffer& result(int64_t k) const { return at(frame_.results, k); }
  static const xla::Buffer& at(const xla::Buffers& buffers, int64_t k) {
    if (k >= buffers.size) throw std::invalid_argument("too few arguments");
    return *buffers.buffers[k];
  }

  template <class T>
  T attribute(const char* name, int dtype) const {
    const xla::Attributes& all = frame_.attributes;
    for (int64_t i = 0; i < all.size; ++i) {
      const xla::Name& n = *all.names[i];
      if (n.length != std::strlen(name) || std::memcmp(n.text, name, n.length) != 0) continue;
      const auto* scalar = static_cast<const xla::Scalar*>(all.values[i]);
      if (all.types[i] == xla::kScalarAttribute && scalar->dtype == dtype) return *static_cast<const T*>(scalar->value);
    }
    throw std::invalid_argument(std::string("no attribute ") + name);
  }

  const xla::CallFrame& frame_;
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

// Runs in XLA's threads, without the GIL.
template <void (*run)(Call&)>
xla::Error* handler(xla::CallFrame* frame) {
  if (frame->extension && frame->extension->type == xla::kMetadata) {
    xla::ApiVersion& version = reinterpret_cast<xla::MetadataExtension*>(frame->extension)->metadata->api_version;
    version.major_version = api_version[0], version.minor_version = api_version[1];
    return nullptr;
  }
  if (frame->stage != xla::kExecute) return nullptr;
  std::string message;
  try {
    Call call(*frame);
    run(call);
    return nullptr;
  } catch (const std::exception& error) {
    message = std::string("fastrl: ") + error.what();
  }
  xla::ErrorArguments arguments{sizeof(xla::ErrorArguments), nullptr, message.c_str(), xla::kInvalidArgument};
  return frame->api->create_error(&arguments);
}

template <void (*run)(Call&)>
py::capsule capsule() {
  return py::capsule(reinterpret_cast<void*>(&handler<run>), "xla._CUSTOM_CALL_TARGET");
}

py::dict jax_handlers(int major, int minor) {
  api_version[0] = major, api_version[1] = minor;
  py::dict all;
  all["reverse_affine_scan"] = capsule<reverse_affine_scan>();
  all["gae"] = capsule<gae>();
  all["lambda_returns"] = capsule<lambda_returns>();
  all["discounted_returns"] = capsule<discounted_returns>();
  all["n_step_returns"] = capsule<n_step_returns>();
  all["vtrace"] = capsule<vtrace>();
  all["off_policy_returns"] = capsule<off_policy_returns>();
  return all;
}

const Binding binding([](py::handle m) { def<&jax_handlers>(m, "jax_handlers(major, minor)"); });

}  // namespace
}  // namespace fastrl
