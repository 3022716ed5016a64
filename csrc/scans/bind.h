// The bindings of the scans, for whichever memory: how a call's arguments are checked, and the ops.
#pragma once

#include <cstring>
#include <limits>
#include <string>

#include "binding/bind.h"
#include "scans/scans.h"

namespace fastrl {

constexpr DType kSame = DType::other;  // the dtype of the first array

// The arguments of one call, taken in and checked one after another; fastrl/kernels/scans.py has the twin for the
// backends in Python, with the same texts in the same order. `Device` is what differs between host and GPU memory:
// which dtypes are taken, how an array is loaded, whether the values of flags can be checked, and how the kernels are
// called.
template <class Device>
class ScanCall {
 public:
  ScanData data;

  // `where` is "<op>: <argument>", here and in all that follows.
  ScanCall(const char* where, py::handle first) : first_(where) {
    const Array& a = take(first, where, Device::floats());
    if (a.ndim != 1 && a.ndim != 2)
      raise_value(std::string(where) + " must have shape [T] or [T, N], got " + shape_text(a.shape, a.ndim));
    data.T = a.shape[0], data.N = a.ndim == 2 ? a.shape[1] : 1;
    data.in[n_in_++] = view(a);
  }

  // An array like the first one.
  void floats(const char* where, py::handle object) {
    const Array& a = take(object, where, Device::floats());
    check_dtype_like(a, where, first(), name_of(first_));
    check_shape_like(a, where, first(), name_of(first_));
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
    const Array& a = take(object, where, Device::floats());
    check_dtype_like(a, where, first(), name_of(first_));
    if (a.ndim != first().ndim - 1 || (a.ndim == 1 && a.shape[0] != data.N))
      raise_value(std::string(where) + " must have shape " + shape_text(first().shape.data() + 1, first().ndim - 1) +
                  " like " + name_of(first_) + "[0], got " + shape_text(a.shape, a.ndim));
    data.last = {a.data, 0, a.ndim == 1 ? a.strides[0] : 0};
    if (!data.last.data) data.last_value = 0;  // N = 0
  }

  void flags(const char* where, py::handle object, ScanArray& into) {
    const Array& a = take(object, where, {DType::boolean, DType::u8});
    check_shape_like(a, where, first(), name_of(first_));
    into = view(a);
    if (a.dtype == DType::u8) bytes_[n_bytes_++] = {where, into};
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

  // The results of one scan. kSame stands for the dtype of the first array.
  template <template <class> class Op>
  py::object run(py::handle out, std::initializer_list<DType> dtypes, double ns_an_item, const Op<double>& op) {
    return run_with(out, dtypes, [&] { Device::scan(op, data, first(), op_name(), ns_an_item); });
  }

  py::object run_n_step(py::handle out, double gamma, int64_t n) {
    return run_with(out, {kSame, kSame, DType::i64},
                    [&] { Device::n_step_returns(data, gamma, n, first(), op_name()); });
  }

 private:
  static constexpr int kMaxArrays = 12;

  // Checks `out` and then the values of the flags, allocates what is not given, and launches.
  template <class F>
  py::object run_with(py::handle out, std::initializer_list<DType> dtypes, const F& launch) {
    const int count = static_cast<int>(dtypes.size());
    Result results[kMaxScanOutputs];
    if (!out.is_none()) targets(out, dtypes);
    if (Device::kChecksFlags) check_bytes();
    for (int i = 0; out.is_none() && i < count; ++i) {
      const DType dtype = dtype_of_result(dtypes.begin()[i]);
      results[i] = allocate_like(first(), dtype, first().shape.data(), first().ndim);
      const int64_t size = dl_dtype_of(dtype).bits / 8;
      data.out[i] = {results[i].data, first().ndim == 2 ? data.N * size : size, size};
    }
    launch();
    if (!out.is_none()) return py::reinterpret_borrow<py::object>(out);
    if (count == 1) return hand_back(std::move(results[0]), first());
    py::tuple all(count);
    for (int i = 0; i < count; ++i) all[i] = hand_back(std::move(results[i]), first());
    return std::move(all);
  }

  const Array& first() const { return arrays_[0]; }
  static const char* name_of(const char* where) { return std::strchr(where, ':') + 2; }
  std::string op_name() const { return {first_, std::strchr(first_, ':')}; }
  DType dtype_of_result(DType dtype) const { return dtype == kSame ? first().dtype : dtype; }

  const Array& take(py::handle object, const char* where, std::initializer_list<DType> allowed) {
    const int i = n_arrays_++;
    names_[i] = where;
    arrays_[i] = Device::load(object, where, i > 0 ? &first() : nullptr, name_of(first_), allowed);
    return arrays_[i];
  }

  ScanArray view(const Array& a) const { return {a.data, a.strides[0], a.ndim == 2 ? a.strides[1] : a.itemsize}; }

  void targets(py::handle out, std::initializer_list<DType> dtypes) {
    static const char* const names[] = {": out[0]", ": out[1]", ": out[2]"};
    const int count = static_cast<int>(dtypes.size());
    const bool many = count > 1, sequence = PyTuple_Check(out.ptr()) || PyList_Check(out.ptr());
    if (many && (!sequence || static_cast<int>(py::len(out)) != count))
      raise_value(op_name() + ": out must be " + std::to_string(count) + " arrays, got " +
                  (sequence ? std::to_string(py::len(out)) + " arrays" : type_name(out.ptr())));
    for (int i = 0; i < count; ++i) {
      out_wheres_[i] = op_name() + (many ? names[i] : ": out");
      target(out_wheres_[i].c_str(),
             many ? py::reinterpret_steal<py::object>(PySequence_GetItem(out.ptr(), i))
                  : py::reinterpret_borrow<py::object>(out),
             dtypes.begin()[i], i);
    }
  }

  void target(const char* where, const py::object& object, DType dtype, int i) {
    const Array& a = dtype == kSame ? take(object, where, Device::floats()) : take(object, where, {dtype});
    if (dtype == kSame) check_dtype_like(a, where, first(), name_of(first_));
    check_shape_like(a, where, first(), name_of(first_));
    if (!a.writable) raise_value(std::string(where) + " must be writable");
    if (a.overlaps_itself()) raise_value(std::string(where) + " must not overlap itself");
    for (int k = 0; k < n_arrays_ - 1; ++k)
      if (a.may_overlap(arrays_[k]))
        raise_value(std::string(where) + " must not share memory with " + name_of(names_[k]));
    data.out[i] = view(a);
  }

  void check_bytes() const {
    for (int k = 0; k < n_bytes_; ++k) {
      const int64_t bad = Device::find_bad_flag(bytes_[k].flags, data.T, data.N);
      if (bad < 0) continue;
      const int64_t t = bad / data.N, n = bad % data.N;
      const ScanArray& f = bytes_[k].flags;
      const int value = static_cast<uint8_t>(f.data[t * f.row + n * f.column]);
      raise_value(std::string(bytes_[k].where) + "[" + std::to_string(t) +
                  (first().ndim == 2 ? ", " + std::to_string(n) : "") + "] is " + std::to_string(value) +
                  ", must be 0 or 1");
    }
  }

  struct Bytes {
    const char* where;
    ScanArray flags;
  };

  const char* first_;
  Array arrays_[kMaxArrays];
  const char* names_[kMaxArrays] = {};
  int n_arrays_ = 0, n_in_ = 0, n_bytes_ = 0;
  Bytes bytes_[4];
  std::string out_wheres_[kMaxScanOutputs];
};

namespace scan_ops {

constexpr double kUnbounded = std::numeric_limits<double>::infinity();

template <class Device>
py::object reverse_affine_scan(py::handle a, py::handle b, py::handle y_T, py::handle out) {
  ScanCall<Device> c("reverse_affine_scan: a", a);
  c.floats("reverse_affine_scan: b", b);
  c.last("reverse_affine_scan: y_T", y_T);
  const AffineScan<double> op{};
  return c.run(out, {kSame}, 0.4, op);
}

template <class Device>
py::object gae(py::handle rewards, py::handle values, py::handle next_values, py::handle terminated,
               py::handle truncated, py::handle gamma, py::handle lam, py::handle mask, py::handle out) {
  ScanCall<Device> c("gae: rewards", rewards);
  c.floats("gae: values", values);
  c.floats("gae: next_values", next_values);
  c.flags("gae: terminated", terminated, c.data.terminated);
  c.flags("gae: truncated", truncated, c.data.truncated);
  const double g = c.number("gae: gamma", gamma), l = c.number("gae: lam", lam);
  c.optional_flags("gae: mask", mask, c.data.mask);
  const Gae<double> op{g, g * l};
  return c.run(out, {kSame, kSame}, 0.4, op);
}

template <class Device>
py::object discounted_returns(py::handle rewards, py::handle terminated, py::handle truncated, py::handle gamma,
                              py::handle next_values, py::handle mask, py::handle out) {
  ScanCall<Device> c("discounted_returns: rewards", rewards);
  c.flags("discounted_returns: terminated", terminated, c.data.terminated);
  c.flags("discounted_returns: truncated", truncated, c.data.truncated);
  const double g = c.number("discounted_returns: gamma", gamma);
  if (!next_values.is_none()) c.floats("discounted_returns: next_values", next_values);
  c.optional_flags("discounted_returns: mask", mask, c.data.mask);
  if (next_values.is_none()) {
    const RewardsToGo<double> op{g, g};
    return c.run(out, {kSame}, 0.3, op);
  }
  const LambdaReturns<double> op{g, g};
  return c.run(out, {kSame}, 0.3, op);
}

template <class Device>
py::object lambda_returns(py::handle rewards, py::handle next_values, py::handle terminated, py::handle truncated,
                          py::handle gamma, py::handle lam, py::handle mask, py::handle out) {
  ScanCall<Device> c("lambda_returns: rewards", rewards);
  c.floats("lambda_returns: next_values", next_values);
  c.flags("lambda_returns: terminated", terminated, c.data.terminated);
  c.flags("lambda_returns: truncated", truncated, c.data.truncated);
  const double g = c.number("lambda_returns: gamma", gamma), l = c.number("lambda_returns: lam", lam);
  c.optional_flags("lambda_returns: mask", mask, c.data.mask);
  const LambdaReturns<double> op{g, g * l};
  return c.run(out, {kSame}, 0.3, op);
}

template <class Device>
py::object n_step_returns(py::handle rewards, py::handle next_values, py::handle terminated, py::handle truncated,
                          py::handle gamma, py::handle n, py::handle cut, py::handle mask, py::handle out) {
  ScanCall<Device> c("n_step_returns: rewards", rewards);
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
  return c.run_n_step(out, g, steps);
}

template <class Device>
py::object vtrace(py::handle rewards, py::handle values, py::handle next_values, py::handle terminated,
                  py::handle truncated, py::handle log_rhos, py::handle gamma, py::handle lam, py::handle rho_clip,
                  py::handle c_clip, py::handle pg_rho_clip, py::handle mask, py::handle out) {
  ScanCall<Device> c("vtrace: rewards", rewards);
  c.floats("vtrace: values", values);
  c.floats("vtrace: next_values", next_values);
  c.flags("vtrace: terminated", terminated, c.data.terminated);
  c.flags("vtrace: truncated", truncated, c.data.truncated);
  c.floats("vtrace: log_rhos", log_rhos);
  const double g = c.number("vtrace: gamma", gamma), l = c.number("vtrace: lam", lam);
  const double rho = c.number("vtrace: rho_clip", rho_clip, kUnbounded),
               high_c = c.number("vtrace: c_clip", c_clip, kUnbounded);
  const double pg_rho = c.number("vtrace: pg_rho_clip", pg_rho_clip, kUnbounded);
  c.optional_flags("vtrace: mask", mask, c.data.mask);
  const VTrace<double> op{g, g, l, rho, high_c, pg_rho};
  return c.run(out, {kSame, kSame}, 1.5, op);
}

template <class Device>
py::object off_policy_returns(py::handle rewards, py::handle q_values, py::handle next_state_values, py::handle traces,
                              py::handle terminated, py::handle truncated, py::handle gamma, py::handle mask,
                              py::handle out) {
  ScanCall<Device> c("off_policy_returns: rewards", rewards);
  c.floats("off_policy_returns: q_values", q_values);
  c.floats("off_policy_returns: next_state_values", next_state_values);
  c.floats("off_policy_returns: traces", traces);
  c.flags("off_policy_returns: terminated", terminated, c.data.terminated);
  c.flags("off_policy_returns: truncated", truncated, c.data.truncated);
  const double g = c.number("off_policy_returns: gamma", gamma);
  c.optional_flags("off_policy_returns: mask", mask, c.data.mask);
  const OffPolicyReturns<double> op{g, g};
  return c.run(out, {kSame}, 0.4, op);
}

}  // namespace scan_ops

template <class Device>
void bind_scan_ops(py::module_& m) {
  m.def("reverse_affine_scan", &scan_ops::reverse_affine_scan<Device>, py::arg("a"), py::arg("b"), py::arg("y_T"),
        py::arg("out"));
  m.def("gae", &scan_ops::gae<Device>, py::arg("rewards"), py::arg("values"), py::arg("next_values"),
        py::arg("terminated"), py::arg("truncated"), py::arg("gamma"), py::arg("lam"), py::arg("mask"), py::arg("out"));
  m.def("discounted_returns", &scan_ops::discounted_returns<Device>, py::arg("rewards"), py::arg("terminated"),
        py::arg("truncated"), py::arg("gamma"), py::arg("next_values"), py::arg("mask"), py::arg("out"));
  m.def("lambda_returns", &scan_ops::lambda_returns<Device>, py::arg("rewards"), py::arg("next_values"),
        py::arg("terminated"), py::arg("truncated"), py::arg("gamma"), py::arg("lam"), py::arg("mask"), py::arg("out"));
  m.def("n_step_returns", &scan_ops::n_step_returns<Device>, py::arg("rewards"), py::arg("next_values"),
        py::arg("terminated"), py::arg("truncated"), py::arg("gamma"), py::arg("n"), py::arg("cut"), py::arg("mask"),
        py::arg("out"));
  m.def("vtrace", &scan_ops::vtrace<Device>, py::arg("rewards"), py::arg("values"), py::arg("next_values"),
        py::arg("terminated"), py::arg("truncated"), py::arg("log_rhos"), py::arg("gamma"), py::arg("lam"),
        py::arg("rho_clip"), py::arg("c_clip"), py::arg("pg_rho_clip"), py::arg("mask"), py::arg("out"));
  m.def("off_policy_returns", &scan_ops::off_policy_returns<Device>, py::arg("rewards"), py::arg("q_values"),
        py::arg("next_state_values"), py::arg("traces"), py::arg("terminated"), py::arg("truncated"), py::arg("gamma"),
        py::arg("mask"), py::arg("out"));
}

}  // namespace fastrl
