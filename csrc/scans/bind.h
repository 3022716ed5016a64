// The bindings of the scans, for whichever memory: how a call's arguments are checked, and the ops.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "binding/bind.h"
#include "scans/scans.h"

namespace fastrl {

constexpr DType kSame = DType::other;  // the dtype of the first array

// Whatever holds flags: bool, integers and floats.
inline void check_flag_dtype(const Array& a, const char* where) {
  if (a.dtype == DType::other)
    raise_value(std::string(where) + " must have dtype bool, or an integer or float one, got " + dtype_text(a));
}

// Numbers [T, N] as bytes [T, N]: 0, 1, and 2 for what is neither.
template <class Bits>
void read_flags(const Array& a, int64_t T, int64_t N, uint64_t one, bool has_sign, uint8_t* to) {
  const int64_t column = a.ndim == 2 ? a.strides[1] : 0;
  for (int64_t t = 0; t < T; ++t)
    for (int64_t n = 0; n < N; ++n) {
      Bits bits;
      std::memcpy(&bits, a.data + t * a.strides[0] + n * column, sizeof bits);
      const auto value = static_cast<Bits>(has_sign ? bits << 1 : bits);  // of a float without its sign: -0 is 0
      *to++ = value == 0 ? 0 : bits == static_cast<Bits>(one) ? 1 : 2;
    }
}

inline std::vector<uint8_t> flag_bytes(const Array& a, int64_t T, int64_t N) {
  std::vector<uint8_t> bytes(static_cast<size_t>(T * N));
  const bool is_float =
      a.dtype == DType::f32 || a.dtype == DType::f64 || a.dtype == DType::f16 || a.dtype == DType::bf16;
  const uint64_t one = a.dtype == DType::f64    ? 0x3FF0000000000000
                       : a.dtype == DType::f32  ? 0x3F800000
                       : a.dtype == DType::f16  ? 0x3C00
                       : a.dtype == DType::bf16 ? 0x3F80
                                                : 1;
  const auto read = a.itemsize == 8   ? read_flags<uint64_t>
                    : a.itemsize == 4 ? read_flags<uint32_t>
                    : a.itemsize == 2 ? read_flags<uint16_t>
                                      : read_flags<uint8_t>;
  read(a, T, N, one, is_float, bytes.data());
  return bytes;
}

template <class X>
X read_item(const char* at) {
  X x;
  std::memcpy(&x, at, sizeof x);
  return x;
}

// A number of that dtype as Python writes it.
inline std::string flag_text(const Array& a, const char* at) {
  switch (a.dtype) {
    case DType::f64:
      return repr(read_item<double>(at));
    case DType::f32:
      return repr(static_cast<double>(read_item<float>(at)));
    case DType::bf16: {
      const uint32_t bits = static_cast<uint32_t>(read_item<uint16_t>(at)) << 16;
      return repr(static_cast<double>(read_item<float>(reinterpret_cast<const char*>(&bits))));
    }
    case DType::f16: {
      const int bits = read_item<uint16_t>(at), exponent = bits >> 10 & 31, fraction = bits & 1023;
      const double size = exponent == 31  ? (fraction ? std::nan("") : std::numeric_limits<double>::infinity())
                          : exponent == 0 ? std::ldexp(fraction, -24)
                                          : std::ldexp(fraction + 1024, exponent - 25);
      return repr(bits >> 15 ? -size : size);
    }
    case DType::u64:
      return std::to_string(read_item<uint64_t>(at));
    case DType::i64:
      return std::to_string(read_item<int64_t>(at));
    case DType::i32:
      return std::to_string(read_item<int32_t>(at));
    case DType::u32:
      return std::to_string(read_item<uint32_t>(at));
    case DType::i16:
      return std::to_string(read_item<int16_t>(at));
    case DType::u16:
      return std::to_string(read_item<uint16_t>(at));
    case DType::i8:
      return std::to_string(read_item<int8_t>(at));
    default:
      return std::to_string(read_item<uint8_t>(at));
  }
}

// The arguments of one call, taken in and checked one after another; fastrl/kernels/scans/reference.py has the twin for
// the backends in Python, with the same texts in the same order. `Device` is what differs between host and GPU memory:
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

  // Bytes, or numbers of any other dtype that are 0 and 1.
  void flags(const char* where, py::handle object, ScanArray& into) {
    const int i = n_arrays_++;
    names_[i] = where;
    arrays_[i] = Device::load_flags(object, where, first(), name_of(first_), kept_);
    const Array& a = arrays_[i];
    check_shape_like(a, where, first(), name_of(first_));
    into = view(a);
    if (a.dtype == DType::boolean) return;
    Flags& f = flags_[n_flags_++];
    if (a.dtype != DType::u8) {
      bytes_.push_back(flag_bytes(a, data.T, data.N));
      into = {reinterpret_cast<char*>(bytes_.back().data()), data.N, 1};
    }
    f.where = where, f.view = into, f.array = i;
  }

  void optional_flags(const char* where, py::handle object, ScanArray& into) {
    if (!object.is_none()) flags(where, object, into);
  }

  // Nothing is truncated for None. A step that is terminated may be truncated as well: it makes no difference.
  void truncated(const char* where, py::handle object) {
    if (object.is_none())
      data.truncated = data.terminated;
    else
      flags(where, object, data.truncated);
  }

  // A discount, or a product of them: 0 where the dtype of the arrays makes it that.
  double rounded(double x) const { return first().dtype == DType::f64 || static_cast<float>(x) != 0 ? x : 0.0; }
  double discount(const char* where, py::handle o) const { return rounded(number(where, o)); }

  double number(const char* where, py::handle given, double high = 1) const {
    py::object held;
    PyObject* o = given.ptr();
    if (!PyFloat_CheckExact(o)) held = scalar_of(given), o = held.ptr();
    if (!is_real(o)) raise_type(std::string(where) + " must be a float, got " + type_name(o));
    const double x = to_double(o);
    if (!(x >= 0 && x <= high))
      raise_value(std::string(where) + " must be " + (high == 1 ? "in [0, 1]" : ">= 0") + ", got " + repr(x));
    return x;
  }

  int64_t positive(const char* where, py::handle given) const {
    const py::object o = scalar_of(given);
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
      // The list may be shorter than it says.
      target(out_wheres_[i].c_str(), many ? py::object(out[py::int_(i)]) : py::reinterpret_borrow<py::object>(out),
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
    for (int k = 0; k < n_flags_; ++k) {
      const int64_t bad = Device::find_bad_flag(flags_[k].view, data.T, data.N);
      if (bad < 0) continue;
      const int64_t t = bad / data.N, n = bad % data.N;
      const Array& a = arrays_[flags_[k].array];
      raise_value(std::string(flags_[k].where) + "[" + std::to_string(t) +
                  (a.ndim == 2 ? ", " + std::to_string(n) : "") + "] is " +
                  flag_text(a, a.data + t * a.strides[0] + (a.ndim == 2 ? n * a.strides[1] : 0)) + ", must be 0 or 1");
    }
  }

  // Flags that are not bool: what their values are looked up in.
  struct Flags {
    const char* where = nullptr;
    ScanArray view;
    int array = 0;
  };

  const char* first_;
  Array arrays_[kMaxArrays];
  const char* names_[kMaxArrays] = {};
  int n_arrays_ = 0, n_in_ = 0, n_flags_ = 0;
  Flags flags_[4];
  std::vector<std::vector<uint8_t>> bytes_;  // of flags of other dtypes than uint8
  std::vector<py::object> kept_;
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
  c.truncated("gae: truncated", truncated);
  const double g = c.discount("gae: gamma", gamma), l = c.discount("gae: lam", lam);
  c.optional_flags("gae: mask", mask, c.data.mask);
  const Gae<double> op{g, c.rounded(g * l)};
  return c.run(out, {kSame, kSame}, 0.4, op);
}

template <class Device>
py::object discounted_returns(py::handle rewards, py::handle terminated, py::handle truncated, py::handle gamma,
                              py::handle next_values, py::handle mask, py::handle out) {
  ScanCall<Device> c("discounted_returns: rewards", rewards);
  c.flags("discounted_returns: terminated", terminated, c.data.terminated);
  c.truncated("discounted_returns: truncated", truncated);
  const double g = c.discount("discounted_returns: gamma", gamma);
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
  c.truncated("lambda_returns: truncated", truncated);
  const double g = c.discount("lambda_returns: gamma", gamma), l = c.discount("lambda_returns: lam", lam);
  c.optional_flags("lambda_returns: mask", mask, c.data.mask);
  const LambdaReturns<double> op{g, c.rounded(g * l)};
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
  c.truncated("n_step_returns: truncated", truncated);
  const double g = c.discount("n_step_returns: gamma", gamma);
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
  c.truncated("vtrace: truncated", truncated);
  c.floats("vtrace: log_rhos", log_rhos);
  const double g = c.discount("vtrace: gamma", gamma), l = c.discount("vtrace: lam", lam);
  const double rho = c.number("vtrace: rho_clip", rho_clip, kUnbounded),
               high_c = c.number("vtrace: c_clip", c_clip, kUnbounded);
  const double pg_rho = c.number("vtrace: pg_rho_clip", pg_rho_clip, kUnbounded);
  c.optional_flags("vtrace: mask", mask, c.data.mask);
  const VTrace<double> op{g, g, c.rounded(g * l) != 0 ? l : 0.0, rho, high_c, pg_rho};
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
  c.truncated("off_policy_returns: truncated", truncated);
  const double g = c.discount("off_policy_returns: gamma", gamma);
  c.optional_flags("off_policy_returns: mask", mask, c.data.mask);
  const OffPolicyReturns<double> op{g, g};
  return c.run(out, {kSame}, 0.4, op);
}

}  // namespace scan_ops

template <class Device>
void bind_scan_ops(py::handle m) {
  def<&scan_ops::reverse_affine_scan<Device>>(m, "reverse_affine_scan(a, b, y_T, out)");
  def<&scan_ops::gae<Device>>(m, "gae(rewards, values, next_values, terminated, truncated, gamma, lam, mask, out)");
  def<&scan_ops::discounted_returns<Device>>(
      m, "discounted_returns(rewards, terminated, truncated, gamma, next_values, mask, out)");
  def<&scan_ops::lambda_returns<Device>>(
      m, "lambda_returns(rewards, next_values, terminated, truncated, gamma, lam, mask, out)");
  def<&scan_ops::n_step_returns<Device>>(
      m, "n_step_returns(rewards, next_values, terminated, truncated, gamma, n, cut, mask, out)");
  def<&scan_ops::vtrace<Device>>(
      m,
      "vtrace(rewards, values, next_values, terminated, truncated, log_rhos, gamma, lam, rho_clip, c_clip, "
      "pg_rho_clip, mask, out)");
  def<&scan_ops::off_policy_returns<Device>>(
      m, "off_policy_returns(rewards, q_values, next_state_values, traces, terminated, truncated, gamma, mask, out)");
}

}  // namespace fastrl
