#include <cstring>
#include <limits>

#include "bindings_cuda.h"
#include "scans_cuda.h"

namespace fastrl {
namespace {

constexpr double kUnbounded = std::numeric_limits<double>::infinity();
constexpr DType kSame = DType::other;  // the dtype of the first array

// The twin of Call in bind_scans.cpp, for tensors on a GPU. The values of flags are not checked: that would wait for
// the device.
class Call {
 public:
  ScanData data;

  // `where` is "<op>: <argument>", here and in all that follows.
  Call(const char* where, py::handle first) : first_where_(where) {
    Array& a = take(first, where, {DType::f32, DType::f64, DType::f16, DType::bf16});
    if (a.ndim != 1 && a.ndim != 2)
      raise_value(std::string(where) + " must have shape [T] or [T, N], got " + shape_text(a.shape, a.ndim));
    data.T = a.shape[0], data.N = a.ndim == 2 ? a.shape[1] : 1;
    data.in[n_in_++] = view(a);
  }

  // An array like the first one.
  void floats(const char* where, py::handle object) {
    const Array& a = take(object, where, {DType::f32, DType::f64, DType::f16, DType::bf16});
    check_dtype_like(a, where);
    check_shape(a, where);
    data.in[n_in_++] = view(a);
  }

  void no_floats() { ++n_in_; }

  // y_T: nothing, a number, or an array of the shape of b[0].
  void last(const char* where, py::handle object) {
    if (object.is_none()) return;
    if (is_real(object.ptr())) {
      data.last_value = to_double(object.ptr());
      return;
    }
    const Array& a = take(object, where, {DType::f32, DType::f64, DType::f16, DType::bf16});
    check_dtype_like(a, where);
    if (a.ndim != first().ndim - 1 || (a.ndim == 1 && a.shape[0] != data.N))
      raise_value(std::string(where) + " must have shape " + shape_text(first().shape.data() + 1, first().ndim - 1) +
                  " like " + first_name() + "[0], got " + shape_text(a.shape, a.ndim));
    data.last = {a.data, 0, a.ndim == 1 ? a.strides[0] : 0};
  }

  void flags(const char* where, py::handle object, ScanArray& into) {
    const Array& a = take(object, where, {DType::boolean, DType::u8});
    check_shape(a, where);
    into = view(a);
  }

  void optional_flags(const char* where, py::handle object, ScanArray& into) {
    if (!object.is_none()) flags(where, object, into);
  }

  double number(const char* where, py::handle o, double high = 1) const {
    if (!is_real(o.ptr())) raise_type(std::string(where) + " must be a float, got " + type_name(o.ptr()));
    const double x = to_double(o.ptr());
    if (!(x >= 0 && x <= high))
      raise_value(std::string(where) + " must be " + (high == 1 ? "in [0, 1]" : ">= 0") + ", got " + repr(x));
    return x;
  }

  int64_t positive(const char* where, py::handle o) const {
    if (!is_int(o.ptr())) raise_type(std::string(where) + " must be an int, got " + type_name(o.ptr()));
    const int64_t n = to_int64_clipped(o.ptr());
    if (n < 1) raise_value(std::string(where) + " must be >= 1, got " + py::cast<std::string>(py::str(o)));
    return n;
  }

  // Checks `out`, or allocates the results, and launches kernel(stream).
  template <class F>
  py::object run(py::handle out, std::initializer_list<DType> dtypes, F kernel) {
    const int count = static_cast<int>(dtypes.size());
    Result results[kMaxScanOutputs];
    if (!out.is_none())
      targets(out, dtypes);
    else
      for (int i = 0; i < count; ++i) {
        const DType dtype = dtype_of_result(dtypes.begin()[i]);
        results[i] = allocate_like(first(), dtype, first().shape.data(), first().ndim);
        const int64_t size = dl_dtype_of(dtype).bits / 8;
        data.out[i] = {results[i].data, first().ndim == 2 ? data.N * size : size, size};
      }
    const std::string op = op_name();
    launch_on(first().api, first().device, op.c_str(),
              [&](cudaStream_t stream) { return kernel(cuda_float(first().dtype), stream); });
    if (!out.is_none()) return py::reinterpret_borrow<py::object>(out);
    if (count == 1) return std::move(results[0].object);
    py::tuple all(count);
    for (int i = 0; i < count; ++i) all[i] = std::move(results[i].object);
    return std::move(all);
  }

 private:
  static constexpr int kMaxArrays = 12;

  const Array& first() const { return arrays_[0]; }
  static std::string name_of(const char* where) { return std::strchr(where, ':') + 2; }
  std::string first_name() const { return name_of(first_where_); }
  std::string op_name() const { return {first_where_, std::strchr(first_where_, ':')}; }
  DType dtype_of_result(DType dtype) const { return dtype == kSame ? first().dtype : dtype; }

  Array& take(py::handle object, const char* where, std::initializer_list<DType> allowed) {
    Array& a = arrays_[n_arrays_];
    a = load_cuda(object, where, n_arrays_ ? &first() : nullptr, first_name().c_str(), allowed);
    wheres_[n_arrays_++] = where;
    return a;
  }

  void check_dtype_like(const Array& a, const char* where) const {
    if (a.dtype != first().dtype)
      raise_value(std::string(where) + " must have dtype " + dtype_name(first().dtype) + " like " + first_name() +
                  ", got " + dtype_text(a));
  }

  void check_shape(const Array& a, const char* where) const {
    check_shape_like(a, where, first(), first_name().c_str());
  }

  static ScanArray view(const Array& a) { return {a.data, a.strides[0], a.ndim == 2 ? a.strides[1] : a.itemsize}; }

  void targets(py::handle out, std::initializer_list<DType> dtypes) {
    static const char* const names[] = {": out[0]", ": out[1]", ": out[2]"};
    const int count = static_cast<int>(dtypes.size());
    const bool many = count > 1, sequence = PyTuple_Check(out.ptr()) || PyList_Check(out.ptr());
    if (many && (!sequence || static_cast<int>(py::len(out)) != count))
      raise_value(op_name() + ": out must be " + std::to_string(count) + " arrays, got " +
                  (sequence ? std::to_string(py::len(out)) + " arrays" : type_name(out.ptr())));
    for (int i = 0; i < count; ++i) {
      out_wheres_[i] = op_name() + (many ? names[i] : ": out");
      const DType dtype = dtypes.begin()[i];
      target(out_wheres_[i].c_str(),
             many ? py::reinterpret_steal<py::object>(PySequence_GetItem(out.ptr(), i))
                  : py::reinterpret_borrow<py::object>(out),
             dtype, i);
    }
  }

  void target(const char* where, const py::object& object, DType dtype, int i) {
    if (dtype == kSame)
      check_dtype_like(take(object, where, {DType::f32, DType::f64, DType::f16, DType::bf16}), where);
    else
      take(object, where, {dtype});
    const Array& a = arrays_[n_arrays_ - 1];
    check_shape(a, where);
    for (int d = 0; d < a.ndim && a.size() > 0; ++d)
      if (a.strides[d] == 0 && a.shape[d] > 1) raise_value(std::string(where) + " must not overlap itself");
    for (int k = 0; k < n_arrays_ - 1; ++k)
      if (a.may_overlap(arrays_[k]))
        raise_value(std::string(where) + " must not share memory with " + name_of(wheres_[k]));
    data.out[i] = view(a);
  }

  const char* first_where_;
  Array arrays_[kMaxArrays];
  const char* wheres_[kMaxArrays] = {};
  std::string out_wheres_[kMaxScanOutputs];
  int n_arrays_ = 0, n_in_ = 0;
};

template <template <class> class Op>
auto kernel_of(const Op<double>& op, const ScanData& data) {
  return [&op, &data](CudaFloat dtype, cudaStream_t stream) { return cuda_scan(op, dtype, data, stream); };
}

py::object reverse_affine_scan(py::handle a, py::handle b, py::handle y_T, py::handle out) {
  Call c("reverse_affine_scan: a", a);
  c.floats("reverse_affine_scan: b", b);
  c.last("reverse_affine_scan: y_T", y_T);
  const AffineScan<double> op{};
  return c.run(out, {kSame}, kernel_of(op, c.data));
}

py::object gae(py::handle rewards, py::handle values, py::handle next_values, py::handle terminated,
               py::handle truncated, py::handle gamma, py::handle lam, py::handle mask, py::handle out) {
  Call c("gae: rewards", rewards);
  c.floats("gae: values", values);
  c.floats("gae: next_values", next_values);
  c.flags("gae: terminated", terminated, c.data.terminated);
  c.flags("gae: truncated", truncated, c.data.truncated);
  Gae<double> op{};
  op.gamma = c.number("gae: gamma", gamma);
  op.continuation = op.gamma * c.number("gae: lam", lam);
  c.optional_flags("gae: mask", mask, c.data.mask);
  return c.run(out, {kSame, kSame}, kernel_of(op, c.data));
}

py::object discounted_returns(py::handle rewards, py::handle terminated, py::handle truncated, py::handle gamma,
                              py::handle next_values, py::handle mask, py::handle out) {
  Call c("discounted_returns: rewards", rewards);
  c.flags("discounted_returns: terminated", terminated, c.data.terminated);
  c.flags("discounted_returns: truncated", truncated, c.data.truncated);
  RewardsToGo<double> rewards_only{};
  LambdaReturns<double> op{};
  op.gamma = op.continuation = c.number("discounted_returns: gamma", gamma);
  rewards_only.gamma = rewards_only.continuation = op.gamma;
  if (!next_values.is_none()) c.floats("discounted_returns: next_values", next_values);
  c.optional_flags("discounted_returns: mask", mask, c.data.mask);
  if (next_values.is_none()) return c.run(out, {kSame}, kernel_of(rewards_only, c.data));
  return c.run(out, {kSame}, kernel_of(op, c.data));
}

py::object lambda_returns(py::handle rewards, py::handle next_values, py::handle terminated, py::handle truncated,
                          py::handle gamma, py::handle lam, py::handle mask, py::handle out) {
  Call c("lambda_returns: rewards", rewards);
  c.floats("lambda_returns: next_values", next_values);
  c.flags("lambda_returns: terminated", terminated, c.data.terminated);
  c.flags("lambda_returns: truncated", truncated, c.data.truncated);
  LambdaReturns<double> op{};
  op.gamma = c.number("lambda_returns: gamma", gamma);
  op.continuation = op.gamma * c.number("lambda_returns: lam", lam);
  c.optional_flags("lambda_returns: mask", mask, c.data.mask);
  return c.run(out, {kSame}, kernel_of(op, c.data));
}

py::object n_step_returns_binding(py::handle rewards, py::handle next_values, py::handle terminated,
                                  py::handle truncated, py::handle gamma, py::handle n, py::handle cut, py::handle mask,
                                  py::handle out) {
  Call c("n_step_returns: rewards", rewards);
  if (next_values.is_none())
    c.no_floats();
  else
    c.floats("n_step_returns: next_values", next_values);
  c.flags("n_step_returns: terminated", terminated, c.data.terminated);
  c.flags("n_step_returns: truncated", truncated, c.data.truncated);
  const double g = c.number("n_step_returns: gamma", gamma);
  const int64_t steps = c.positive("n_step_returns: n", n);
  c.optional_flags("n_step_returns: cut", cut, c.data.cut);
  c.optional_flags("n_step_returns: mask", mask, c.data.mask);
  return c.run(out, {kSame, kSame, DType::i64}, [&](CudaFloat dtype, cudaStream_t stream) {
    return cuda_n_step_returns(c.data, dtype, g, steps, stream);
  });
}

py::object vtrace(py::handle rewards, py::handle values, py::handle next_values, py::handle terminated,
                  py::handle truncated, py::handle log_rhos, py::handle gamma, py::handle lam, py::handle rho_clip,
                  py::handle c_clip, py::handle pg_rho_clip, py::handle mask, py::handle out) {
  Call c("vtrace: rewards", rewards);
  c.floats("vtrace: values", values);
  c.floats("vtrace: next_values", next_values);
  c.flags("vtrace: terminated", terminated, c.data.terminated);
  c.flags("vtrace: truncated", truncated, c.data.truncated);
  c.floats("vtrace: log_rhos", log_rhos);
  VTrace<double> op{};
  op.gamma = op.continuation = c.number("vtrace: gamma", gamma);
  op.lam = c.number("vtrace: lam", lam);
  op.rho_clip = c.number("vtrace: rho_clip", rho_clip, kUnbounded);
  op.c_clip = c.number("vtrace: c_clip", c_clip, kUnbounded);
  op.pg_rho_clip = c.number("vtrace: pg_rho_clip", pg_rho_clip, kUnbounded);
  c.optional_flags("vtrace: mask", mask, c.data.mask);
  return c.run(out, {kSame, kSame}, kernel_of(op, c.data));
}

py::object off_policy_returns(py::handle rewards, py::handle q_values, py::handle next_state_values, py::handle traces,
                              py::handle terminated, py::handle truncated, py::handle gamma, py::handle mask,
                              py::handle out) {
  Call c("off_policy_returns: rewards", rewards);
  c.floats("off_policy_returns: q_values", q_values);
  c.floats("off_policy_returns: next_state_values", next_state_values);
  c.floats("off_policy_returns: traces", traces);
  c.flags("off_policy_returns: terminated", terminated, c.data.terminated);
  c.flags("off_policy_returns: truncated", truncated, c.data.truncated);
  OffPolicyReturns<double> op{};
  op.gamma = op.continuation = c.number("off_policy_returns: gamma", gamma);
  c.optional_flags("off_policy_returns: mask", mask, c.data.mask);
  return c.run(out, {kSame}, kernel_of(op, c.data));
}

}  // namespace

void bind_cuda_scans(py::module_& m) {
  m.def("reverse_affine_scan", &reverse_affine_scan, py::arg("a"), py::arg("b"), py::arg("y_T"), py::arg("out"));
  m.def("gae", &gae, py::arg("rewards"), py::arg("values"), py::arg("next_values"), py::arg("terminated"),
        py::arg("truncated"), py::arg("gamma"), py::arg("lam"), py::arg("mask"), py::arg("out"));
  m.def("discounted_returns", &discounted_returns, py::arg("rewards"), py::arg("terminated"), py::arg("truncated"),
        py::arg("gamma"), py::arg("next_values"), py::arg("mask"), py::arg("out"));
  m.def("lambda_returns", &lambda_returns, py::arg("rewards"), py::arg("next_values"), py::arg("terminated"),
        py::arg("truncated"), py::arg("gamma"), py::arg("lam"), py::arg("mask"), py::arg("out"));
  m.def("n_step_returns", &n_step_returns_binding, py::arg("rewards"), py::arg("next_values"), py::arg("terminated"),
        py::arg("truncated"), py::arg("gamma"), py::arg("n"), py::arg("cut"), py::arg("mask"), py::arg("out"));
  m.def("vtrace", &vtrace, py::arg("rewards"), py::arg("values"), py::arg("next_values"), py::arg("terminated"),
        py::arg("truncated"), py::arg("log_rhos"), py::arg("gamma"), py::arg("lam"), py::arg("rho_clip"),
        py::arg("c_clip"), py::arg("pg_rho_clip"), py::arg("mask"), py::arg("out"));
  m.def("off_policy_returns", &off_policy_returns, py::arg("rewards"), py::arg("q_values"),
        py::arg("next_state_values"), py::arg("traces"), py::arg("terminated"), py::arg("truncated"), py::arg("gamma"),
        py::arg("mask"), py::arg("out"));
}

}  // namespace fastrl
