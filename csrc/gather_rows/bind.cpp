#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <vector>

#include "binding/bind.h"
#include "binding/numpy.h"
#include "core/parallel.h"
#include "gather_rows/gather_rows.h"

namespace fastrl {
namespace {

// The arrays of a call, by name in errors: one array, or a list of them.
struct Call {
  bool single;
  std::vector<py::object> inputs, outputs;  // no outputs: they are allocated

  Call(py::handle arrays, py::handle out) : single(!is_list(arrays)) {
    if (single)
      inputs.push_back(py::reinterpret_borrow<py::object>(arrays));
    else
      for (py::handle a : arrays) inputs.push_back(py::reinterpret_borrow<py::object>(a));
    if (out.is_none()) return;
    if (single)
      outputs.push_back(py::reinterpret_borrow<py::object>(out));
    else if (is_list(out) && py::len(out) == inputs.size())
      for (size_t a = 0; a < inputs.size(); ++a)
        outputs.push_back(out[py::int_(a)]);  // a list may be shorter than it says
    else
      raise_value("gather_rows: out must be " + std::to_string(inputs.size()) + " arrays like arrays, got " +
                  (is_list(out) ? std::to_string(py::len(out)) + " arrays" : type_name(out.ptr())));
  }
  std::string name(const char* argument, size_t a) const {
    return std::string("gather_rows: ") + argument + (single ? "" : "[" + std::to_string(a) + "]");
  }
  static bool is_list(py::handle x) { return PyList_Check(x.ptr()) || PyTuple_Check(x.ptr()); }
};

Array load_source(const Call& call, size_t a) {
  Array s = load(call.inputs[a].ptr(), call.single ? "gather_rows: arrays" : call.name("arrays", a).c_str());
  if (s.device.device_type != kDLCPU || (!s.data && s.size() > 0) || s.ndim == 0 || s.has_objects) {
    const std::string where = call.name("arrays", a);
    check_cpu(s, where.c_str());
    check_has_data(s, where.c_str());
    if (s.ndim == 0) raise_value(where + " must have shape [N, ...], got ()");
    if (s.has_objects) raise_value(where + " must have a dtype without Python objects, got " + dtype_text(s));
  }
  return s;
}

RowSource plan_of(const Array& s) {
  RowSource plan{};
  plan.data = s.data, plan.row_stride = s.strides[0], plan.itemsize = s.itemsize;
  plan.ndim = s.ndim - 1, plan.shape = s.shape.data() + 1, plan.strides = s.strides.data() + 1;
  plan.row_bytes = s.itemsize, plan.contiguous_rows = true;
  for (int d = s.ndim - 1; d > 0; --d) {
    if (s.shape[d] != 1 && s.strides[d] != plan.row_bytes) plan.contiguous_rows = false;
    plan.row_bytes *= s.shape[d];
  }
  return plan;
}

// About 20 ns a random row and 10 GB/s, or 2 ns an item where the items are scattered.
double microseconds_of(const RowSource& plan, int64_t n) {
  const double bytes = static_cast<double>(plan.row_bytes), rows = static_cast<double>(n);
  const double items = plan.contiguous_rows ? 0.0 : bytes / static_cast<double>(plan.itemsize);
  return rows * (0.02 + 1e-4 * bytes + 2e-3 * items);
}

std::array<int64_t, kMaxDims> shape_of(const Array& s, int64_t n) {
  std::array<int64_t, kMaxDims> shape = s.shape;
  shape[0] = n;
  return shape;
}

// An output for the rows of sources[a].
Array load_target(const Call& call, size_t a, const std::vector<Array>& sources, const std::vector<Array>& before,
                  int64_t n) {
  const Array& s = sources[a];
  const std::string where = call.name("out", a);
  Array t = load(call.outputs[a].ptr(), where.c_str());
  check_cpu(t, where.c_str());
  check_has_data(t, where.c_str());
  if (t.dtype != s.dtype || t.itemsize != s.itemsize || (s.dtype == DType::other && dtype_text(t) != dtype_text(s)))
    raise_value(where + " must have dtype " + dtype_text(s) + " like its array, got " + dtype_text(t));
  const std::array<int64_t, kMaxDims> shape = shape_of(s, n);
  if (t.ndim != s.ndim || !std::equal(shape.begin(), shape.begin() + s.ndim, t.shape.begin()))
    raise_value(where + " must have shape " + shape_text(shape, s.ndim) + ", got " + shape_text(t.shape, t.ndim));
  if (!t.is_contiguous() || !t.writable) raise_value(where + " must be C-contiguous and writable");
  for (const Array& source : sources)
    if (t.may_overlap(source)) raise_value(where + " must not share memory with arrays");
  for (const Array& target : before)
    if (t.may_overlap(target)) raise_value(where + " must not share memory with another out");
  return t;
}

Result allocate_target(const Call& call, size_t a, const Array& s, int64_t n) {
  const std::array<int64_t, kMaxDims> shape = shape_of(s, n);
  if (s.kind == Kind::numpy) {
    auto* descr = reinterpret_cast<PyObject*>(numpy_array(s.object)->descr);
    Py_INCREF(descr);
    return allocate_numpy(descr, shape.data(), s.ndim);
  }
  if (s.kind == Kind::capsule && numpy_type(s.dtype) < 0)  // torch's bfloat16, too, before 2.10
    raise_value(call.name("arrays", a) + " must have a NumPy dtype, got " + dtype_text(s));
  return s.kind == Kind::exchange ? allocate_exchange(s.api, s.device, s.dl_dtype, shape.data(), s.ndim)
                                  : allocate_numpy(s.dtype, shape.data(), s.ndim);
}

py::object gather_rows_binding(py::handle arrays, py::handle indices, py::handle out) {
  const Call call(arrays, out);
  const size_t count = call.inputs.size();
  const Array index_array = load_cpu(indices.ptr(), "gather_rows: indices", {DType::i64, DType::i32});
  check_ndim_1(index_array, "gather_rows: indices");
  const Contiguous<int64_t> index(index_array, /*copy=*/true);
  const int64_t n = index.size();

  std::vector<Array> sources, targets;
  std::vector<RowSource> plans;
  sources.reserve(count), targets.reserve(call.outputs.size()), plans.reserve(count);
  int64_t rows = std::numeric_limits<int64_t>::max();
  for (size_t a = 0; a < count; ++a) {
    sources.push_back(load_source(call, a));
    rows = std::min(rows, sources[a].shape[0]);
  }
  double microseconds = 0;
  for (size_t a = 0; a < count; ++a) {
    plans.push_back(plan_of(sources[a]));
    microseconds += microseconds_of(plans[a], n);
    if (call.outputs.empty()) continue;
    targets.push_back(load_target(call, a, sources, targets, n));
    plans[a].out = targets[a].data;
  }
  if (count > 0)
    for (int64_t i = 0; i < n; ++i)
      if (index.data()[i] < 0 || index.data()[i] >= rows)
        throw py::index_error("gather_rows: indices[" + std::to_string(i) + "] is " + std::to_string(index.data()[i]) +
                              ", outside [0, " + std::to_string(rows) + ")");
  std::vector<Result> results;
  if (call.outputs.empty())
    for (size_t a = 0; a < count; ++a) {
      results.push_back(allocate_target(call, a, sources[a], n));
      plans[a].out = results.back().data;
    }

  const Threads threads = threads_and_pieces(microseconds);
  {
    ReleaseGil release;
    parallel_for(n, threads, [&](int64_t begin, int64_t end) {
      for (const RowSource& plan : plans) gather_rows(plan, index.data(), begin, end);
    });
  }
  if (!call.outputs.empty()) return py::reinterpret_borrow<py::object>(out);
  if (call.single) return hand_back(std::move(results[0]), sources[0]);
  py::list list(count);
  for (size_t a = 0; a < count; ++a) list[a] = hand_back(std::move(results[a]), sources[a]);
  return std::move(list);
}

void bind(py::handle m) { def<&gather_rows_binding>(m, "gather_rows(arrays, indices, out)"); }

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
