// The Python module fastrl._C: checks arguments, lets go of the GIL, calls a kernel.
#include <pybind11/pybind11.h>

#include <limits>
#include <memory>
#include <vector>

#include "arrays.h"
#include "gather_rows.h"
#include "parallel.h"
#include "sum_tree.h"

#if defined(__linux__)
#include <sched.h>
#endif
#include <thread>

namespace fastrl {
namespace {

// ---------------------------------------------------------------- threads
int chosen_threads = 0;  // 0: the default, asked for anew at each large call; the GIL guards it

int default_threads() {
  py::object torch = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("torch").ptr()));
  if (torch && py::hasattr(torch, "get_num_threads")) return py::cast<int>(torch.attr("get_num_threads")());
  PyErr_Clear();
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? static_cast<int>(n) : 1;
}

int num_threads() { return chosen_threads > 0 ? chosen_threads : default_threads(); }

// Waking the pool costs about 50 us: only above about 200 us of work are other threads asked.
int threads_for(double microseconds) { return microseconds < 200 ? 1 : num_threads(); }

// ---------------------------------------------------------------- scalars
// Of the abstract class numbers.<name>: takes NumPy's scalars in, and leaves arrays, bool and str out.
bool is_number(PyObject* o, const char* name) {
  // Arrays first: asking the abstract class costs 0.8 us.
  if (PyBool_Check(o) || py::detail::npy_api::get().PyArray_Check_(o) || exchange_api(Py_TYPE(o))) return false;
  return py::isinstance(o, py::module_::import("numbers").attr(name));
}

bool is_int(PyObject* o) { return PyLong_CheckExact(o) || is_number(o, "Integral"); }

bool is_real(PyObject* o) { return PyFloat_CheckExact(o) || PyLong_CheckExact(o) || is_number(o, "Real"); }

// An int beyond float64 becomes inf, which every check refuses by its own text.
double to_double(PyObject* o) {
  const double x = PyFloat_AsDouble(o);
  if (x == -1.0 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_OverflowError)) throw py::error_already_set();
    PyErr_Clear();
    return std::numeric_limits<double>::infinity();
  }
  return x;
}

// A Python int beyond int64 is outside every tree: clipped, it reads the same.
int64_t to_int64_clipped(PyObject* o) {
  const Py_ssize_t n = PyNumber_AsSsize_t(o, nullptr);
  if (n == -1 && PyErr_Occurred()) throw py::error_already_set();
  return n;
}

// ---------------------------------------------------------------- sum tree
constexpr int64_t kMaxBatch = 2147483647;

class SumTreeCore {
 public:
  SumTreeCore(int64_t capacity, const std::string& dtype, py::object state, py::object tensor_type)
      : tree_(make_sum_tree(capacity, dtype == "float64")),
        capacity_(capacity),
        leaf_(dtype == "float64" ? DType::f64 : DType::f32),
        state_owner_(std::move(state)) {
    const Array s = load_cpu(state_owner_.ptr(), "sum_tree: state", {DType::u64});
    if (s.ndim != 1 || s.shape[0] != 2 || s.strides[0] != 8) raise_value("sum_tree: state must be uint64 [2]");
    state_ = reinterpret_cast<uint64_t*>(s.data);
    if (!tensor_type.is_none()) {
      like_.kind = Kind::exchange;
      like_.api = exchange_api(reinterpret_cast<PyTypeObject*>(tensor_type.ptr()));
      if (!like_.api) {  // torch before 2.9: hand_back wraps NumPy
        prototype_ = py::module_::import("torch").attr("empty")(0);
        like_.kind = Kind::capsule;
        like_.object = prototype_.ptr();
      }
    }
  }

  void update(py::handle indices, py::handle priorities) {
    static const char where_i[] = "sum_tree.update: indices", where_p[] = "sum_tree.update: priorities";
    const bool one_index = is_int(indices.ptr());
    Array i;
    if (!one_index) i = load_indices(indices, where_i);
    const int64_t n = one_index ? 1 : i.shape[0];
    const auto run = [&](const auto& p) {
      return one_index ? update_with(Contiguous<int64_t>(to_int64_clipped(indices.ptr())), p)
                       : update_with(Contiguous<int64_t>(i), p);
    };
    BadItem bad;
    if (is_real(priorities.ptr())) {
      bad = run(Contiguous<double>(n, to_double(priorities.ptr())));
    } else {
      const Array p = load_cpu(priorities.ptr(), where_p, {DType::f32, DType::f64});
      check_ndim_1(p, where_p);
      check_same_length(p, where_p, n);
      bad = p.dtype == DType::f32 ? run(Contiguous<float>(p)) : run(Contiguous<double>(p));
    }
    raise_bad(bad);
  }

  double update_from_td_errors(py::handle indices, py::handle td_errors, py::handle alpha_object, py::handle eps_object,
                               bool keep_zeros) {
    static const char where_td[] = "sum_tree.update_from_td_errors: td_errors";
    const double alpha = check_not_negative(alpha_object, "sum_tree.update_from_td_errors: alpha");
    const double eps = check_not_negative(eps_object, "sum_tree.update_from_td_errors: eps");
    const Array i = load_indices(indices, "sum_tree.update_from_td_errors: indices");
    const Array td = load_cpu(td_errors.ptr(), where_td, {DType::f32, DType::f64});
    check_ndim_1(td, where_td);
    check_same_length(td, where_td, i.shape[0]);
    const Contiguous<int64_t> index(i);
    std::vector<double> p(td.shape[0]);  // overwritten by the priorities
    const Contiguous<double> errors(td);
    std::copy(errors.data(), errors.data() + errors.size(), p.begin());
    double largest = 0;
    BadItem bad;
    {
      ReleaseGil release;
      bad = tree_->update_from_td(index.data(), p.data(), index.size(), alpha, eps, keep_zeros, &largest);
    }
    if (bad.kind == BadItem::index) raise_index("sum_tree.update_from_td_errors", bad);
    if (bad.kind != BadItem::none)
      raise_value(std::string(where_td) + "[" + std::to_string(bad.position) + "] is " + repr(bad.value) +
                  ", must be finite");
    return largest;
  }

  py::object get(py::handle indices) const {
    if (is_int(indices.ptr())) {
      const int64_t i = to_int64_clipped(indices.ptr());
      double value = 0;
      float value32 = 0;
      BadItem bad;
      {
        ReleaseGil release;
        bad = tree_->get(&i, leaf_ == DType::f64 ? static_cast<void*>(&value) : &value32, 1);
      }
      if (bad.kind != BadItem::none) raise_index("sum_tree.get", bad);
      return py::float_(leaf_ == DType::f64 ? value : static_cast<double>(value32));
    }
    const Array a = load_indices(indices, "sum_tree.get: indices");
    const Contiguous<int64_t> index(a);
    Result out = allocate_like(a, leaf_, a.shape.data(), 1);
    BadItem bad;
    {
      ReleaseGil release;
      bad = tree_->get(index.data(), out.data, index.size());
    }
    if (bad.kind != BadItem::none) raise_index("sum_tree.get", bad);
    return hand_back(std::move(out), a);
  }

  py::object find(py::handle prefix_sums) const {
    static const char where[] = "sum_tree.find: prefix_sums";
    if (is_real(prefix_sums.ptr())) {
      const double u = to_double(prefix_sums.ptr());
      int64_t index = 0;
      find_checked(&u, 1, &index);
      return py::int_(index);
    }
    const Array a = load_cpu(prefix_sums.ptr(), where, {DType::f32, DType::f64});
    check_ndim_1(a, where);
    const Contiguous<double> u(a, /*copy=*/true);
    Result out = allocate_like(a, DType::i64, a.shape.data(), 1);
    find_checked(u.data(), u.size(), reinterpret_cast<int64_t*>(out.data));
    return hand_back(std::move(out), a);
  }

  py::tuple sample(py::handle batch_size, bool stratified, bool replacement) {
    const int64_t n = check_batch_size(batch_size, "sample");
    Result indices = allocate_like(like_, DType::i64, &n, 1), probabilities = allocate_like(like_, DType::f64, &n, 1);
    auto* i = reinterpret_cast<int64_t*>(indices.data);
    auto* p = reinterpret_cast<double*>(probabilities.data);
    const int threads = threads_for(0.03 * static_cast<double>(n));
    SumTree::Status status;
    {
      ReleaseGil release;
      status =
          replacement ? tree_->sample(state_, stratified, n, i, p, threads) : tree_->sample_distinct(state_, n, i, p);
    }
    if (status == SumTree::Status::too_few) {
      const std::string count = std::to_string(tree_->count_positive());
      raise_value("sum_tree.sample: batch_size must be at most " + count +
                  ", the number of positive priorities, without replacement, got " + std::to_string(n));
    }
    raise_if_empty(status, "sample");
    return py::make_tuple(hand_back(std::move(indices), like_), hand_back(std::move(probabilities), like_));
  }

  py::tuple sample_weighted(py::handle batch_size, py::handle beta_object, py::handle normalize, bool stratified) {
    const int64_t n = check_batch_size(batch_size, "sample_weighted");
    const double beta = check_not_negative(beta_object, "sum_tree.sample_weighted: beta");
    if (!PyUnicode_Check(normalize.ptr()))
      raise_type("sum_tree.sample_weighted: normalize must be a str, got " + type_name(normalize.ptr()));
    const bool whole_tree = PyUnicode_CompareWithASCIIString(normalize.ptr(), "tree") == 0;
    if (!whole_tree && PyUnicode_CompareWithASCIIString(normalize.ptr(), "batch") != 0)
      raise_value("sum_tree.sample_weighted: normalize must be \"batch\" or \"tree\", got " +
                  py::cast<std::string>(py::repr(normalize)));
    Result indices = allocate_like(like_, DType::i64, &n, 1), weights = allocate_like(like_, leaf_, &n, 1);
    const int threads = threads_for(0.03 * static_cast<double>(n));
    SumTree::Status status;
    {
      ReleaseGil release;
      status = tree_->sample_weighted(state_, stratified, beta, whole_tree, n, reinterpret_cast<int64_t*>(indices.data),
                                      weights.data, threads);
    }
    raise_if_empty(status, "sample_weighted");
    return py::make_tuple(hand_back(std::move(indices), like_), hand_back(std::move(weights), like_));
  }

  void load(py::handle priorities) {
    const Array p = load_cpu(priorities.ptr(), "sum_tree.load: priorities", {DType::f32, DType::f64});
    check_ndim_1(p, "sum_tree.load: priorities");
    if (p.shape[0] != capacity_) raise_value("sum_tree.load: priorities must have one value a leaf");
    std::vector<int64_t> all(capacity_);
    for (int64_t i = 0; i < capacity_; ++i) all[i] = i;
    const Contiguous<double> values(p);
    BadItem bad;
    {
      ReleaseGil release;
      bad = tree_->update(all.data(), values.data(), capacity_);
    }
    raise_bad(bad);
  }

  py::object priorities() const {
    Result out = allocate_numpy(leaf_, &capacity_, 1);
    without_gil([&] { tree_->copy_leaves(out.data); });
    return std::move(out.object);
  }

  void clear() {
    without_gil([&] { tree_->clear(); });
  }
  double total() const {
    return without_gil([&] { return tree_->total(); });
  }
  double min() {
    return without_gil([&] { return tree_->min_positive(); });
  }
  double max() {
    return without_gil([&] { return tree_->max(); });
  }
  int64_t len() const {
    return without_gil([&] { return tree_->count_positive(); });
  }

 private:
  Array load_indices(py::handle indices, const char* where) const {
    Array a = load_cpu(indices.ptr(), where, {DType::i64, DType::i32});
    check_ndim_1(a, where);
    return a;
  }

  template <class P>
  BadItem update_with(const Contiguous<int64_t>& index, const Contiguous<P>& p) {
    ReleaseGil release;  // no Python object is touched until it is back
    return tree_->update(index.data(), p.data(), index.size());
  }

  [[noreturn]] void raise_index(const std::string& where, const BadItem& bad) const {
    throw py::index_error(where + ": indices[" + std::to_string(bad.position) + "] is " +
                          std::to_string(bad.index_value) + ", outside [0, " + std::to_string(capacity_) + ")");
  }

  std::string limit_text() const {
    return std::string(leaf_ == DType::f32 ? "3.4028234663852886e+38" : "2**960") + " in a " + dtype_name(leaf_) +
           " tree";
  }

  static void check_same_length(const Array& a, const char* where, int64_t n) {
    if (a.shape[0] != n)
      raise_value(std::string(where) + " must have shape (" + std::to_string(n) + ",) like indices, got " +
                  shape_text(a.shape, a.ndim));
  }

  static double check_not_negative(py::handle o, const char* where) {
    if (!is_real(o.ptr())) raise_type(std::string(where) + " must be a float, got " + type_name(o.ptr()));
    const double x = to_double(o.ptr());
    if (!(x >= 0 && x <= std::numeric_limits<double>::max()))
      raise_value(std::string(where) + " must be finite and >= 0, got " + repr(x));
    return x;
  }

  void raise_bad(const BadItem& bad) const {
    if (bad.kind == BadItem::none) return;
    if (bad.kind == BadItem::index) raise_index("sum_tree.update", bad);
    raise_value("sum_tree.update: priorities[" + std::to_string(bad.position) + "] is " + repr(bad.value) +
                ", must be " +
                (bad.kind == BadItem::not_finite_or_negative ? "finite and >= 0" : "at most " + limit_text()));
  }

  void find_checked(const double* u, int64_t n, int64_t* out) const {
    const int threads = threads_for(0.03 * static_cast<double>(n));
    double total = 0;
    int64_t bad = -1;
    const SumTree::Status status = without_gil([&] { return tree_->find(u, n, out, threads, &total, &bad); });
    raise_if_empty(status, "find");
    if (bad >= 0)
      raise_value("sum_tree.find: prefix_sums[" + std::to_string(bad) + "] is " + repr(u[bad]) +
                  ", must be in [0, total] = [0, " + repr(total) + "]");
  }

  static int64_t check_batch_size(py::handle o, const char* method) {
    const std::string where = std::string("sum_tree.") + method;
    if (!is_int(o.ptr())) raise_type(where + ": batch_size must be an int, got " + type_name(o.ptr()));
    const int64_t n = to_int64_clipped(o.ptr());
    if (n < 1 || n > kMaxBatch)
      raise_value(where + ": batch_size must be in [1, " + std::to_string(kMaxBatch) + "], got " +
                  py::cast<std::string>(py::str(o)));
    return n;
  }

  static void raise_if_empty(SumTree::Status status, const char* method) {
    if (status == SumTree::Status::total_is_zero)
      raise_value(std::string("sum_tree.") + method + ": the total priority is 0: nothing to sample");
  }

  std::unique_ptr<SumTree> tree_;
  int64_t capacity_;
  DType leaf_;
  py::object state_owner_, prototype_;
  uint64_t* state_;
  Array like_;  // the kind of array that sample returns
};

// ---------------------------------------------------------------- gather_rows
py::object gather_rows_binding(py::handle arrays, py::handle indices, py::handle out) {
  const bool single = !PyList_Check(arrays.ptr()) && !PyTuple_Check(arrays.ptr());
  std::vector<py::object> inputs, outputs;
  if (single)
    inputs.push_back(py::reinterpret_borrow<py::object>(arrays));
  else
    for (py::handle a : arrays) inputs.push_back(py::reinterpret_borrow<py::object>(a));
  const size_t count = inputs.size();
  if (!out.is_none()) {
    const bool many = PyList_Check(out.ptr()) || PyTuple_Check(out.ptr());
    if (single)
      outputs.push_back(py::reinterpret_borrow<py::object>(out));
    else if (many && py::len(out) == count)
      for (py::handle o : out) outputs.push_back(py::reinterpret_borrow<py::object>(o));
    else
      raise_value("gather_rows: out must be " + std::to_string(count) + " arrays like arrays, got " +
                  (many ? std::to_string(py::len(out)) + " arrays" : type_name(out.ptr())));
  }
  auto name = [&](const char* argument, size_t a) {
    return std::string("gather_rows: ") + argument + (single ? "" : "[" + std::to_string(a) + "]");
  };

  const Array index_array = load_cpu(indices.ptr(), "gather_rows: indices", {DType::i64, DType::i32});
  check_ndim_1(index_array, "gather_rows: indices");
  const Contiguous<int64_t> index(index_array, /*copy=*/true);
  const int64_t n = index.size();

  std::vector<Array> sources;
  sources.reserve(count);
  int64_t rows = std::numeric_limits<int64_t>::max();
  for (size_t a = 0; a < count; ++a) {
    sources.push_back(load(inputs[a].ptr(), single ? "gather_rows: arrays" : name("arrays", a).c_str()));
    const Array& s = sources.back();
    if (s.device.device_type != kDLCPU || (!s.data && s.size() > 0) || s.ndim == 0 || s.has_objects) {
      const std::string where = name("arrays", a);
      check_cpu(s, where.c_str());
      check_has_data(s, where.c_str());
      if (s.ndim == 0) raise_value(where + " must have shape [N, ...], got ()");
      if (s.has_objects) raise_value(where + " must have a dtype without Python objects, got " + dtype_text(s));
    }
    rows = std::min(rows, s.shape[0]);
  }

  std::vector<RowSource> plans(count);
  std::vector<Array> targets;
  double microseconds = 0;
  for (size_t a = 0; a < count; ++a) {
    const Array& s = sources[a];
    RowSource& plan = plans[a];
    plan.data = s.data, plan.row_stride = s.strides[0], plan.itemsize = s.itemsize;
    plan.ndim = s.ndim - 1, plan.shape = s.shape.data() + 1, plan.strides = s.strides.data() + 1;
    plan.row_bytes = s.itemsize, plan.contiguous_rows = true;
    for (int d = s.ndim - 1; d > 0; --d) {
      if (s.shape[d] != 1 && s.strides[d] != plan.row_bytes) plan.contiguous_rows = false;
      plan.row_bytes *= s.shape[d];
    }
    // About 20 ns a random row and 10 GB/s, or 2 ns an item where the items are scattered.
    const double bytes = static_cast<double>(plan.row_bytes);
    microseconds += static_cast<double>(n) * (0.02 + 1e-4 * bytes);
    if (!plan.contiguous_rows) microseconds += static_cast<double>(n) * 2e-3 * bytes / static_cast<double>(s.itemsize);
    if (outputs.empty()) continue;
    const std::string where = name("out", a);
    Array t = load(outputs[a].ptr(), where.c_str());
    check_cpu(t, where.c_str());
    check_has_data(t, where.c_str());
    if (t.dtype != s.dtype || t.itemsize != s.itemsize || (s.dtype == DType::other && dtype_text(t) != dtype_text(s)))
      raise_value(where + " must have dtype " + dtype_text(s) + " like its array, got " + dtype_text(t));
    std::array<int64_t, kMaxDims> shape = s.shape;
    shape[0] = n;
    if (t.ndim != s.ndim || !std::equal(shape.begin(), shape.begin() + s.ndim, t.shape.begin()))
      raise_value(where + " must have shape " + shape_text(shape, s.ndim) + ", got " + shape_text(t.shape, t.ndim));
    if (!t.is_contiguous() || !t.writable) raise_value(where + " must be C-contiguous and writable");
    for (const Array& source : sources)
      if (t.may_overlap(source)) raise_value(where + " must not share memory with arrays");
    for (const Array& target : targets)
      if (t.may_overlap(target)) raise_value(where + " must not share memory with another out");
    plan.out = t.data;
    targets.push_back(std::move(t));
  }

  if (count > 0)
    for (int64_t i = 0; i < n; ++i)
      if (index.data()[i] < 0 || index.data()[i] >= rows)
        throw py::index_error("gather_rows: indices[" + std::to_string(i) + "] is " + std::to_string(index.data()[i]) +
                              ", outside [0, " + std::to_string(rows) + ")");

  std::vector<Result> results;
  if (outputs.empty())
    for (size_t a = 0; a < count; ++a) {
      const Array& s = sources[a];
      std::array<int64_t, kMaxDims> shape = s.shape;
      shape[0] = n;
      if (s.kind == Kind::numpy) {
        auto* descr = reinterpret_cast<py::detail::PyArray_Proxy*>(s.object)->descr;
        Py_INCREF(descr);
        results.push_back(allocate_numpy(descr, shape.data(), s.ndim));
      } else {
        if (s.kind == Kind::capsule && s.dtype == DType::other)
          raise_value(name("arrays", a) + " must have a NumPy dtype, got " + dtype_text(s));
        results.push_back(s.kind == Kind::exchange
                              ? allocate_exchange(s.api, s.device, s.dl_dtype, shape.data(), s.ndim)
                              : allocate_numpy(s.dtype, shape.data(), s.ndim));
      }
      plans[a].out = results.back().data;
    }

  const int threads = threads_for(microseconds);
  {
    ReleaseGil release;
    parallel_for(n, threads, [&](int64_t begin, int64_t end) {
      for (const RowSource& plan : plans) gather_rows(plan, index.data(), begin, end);
    });
  }
  if (!outputs.empty()) return py::reinterpret_borrow<py::object>(out);
  if (single) return hand_back(std::move(results[0]), sources[0]);
  py::list list(count);
  for (size_t a = 0; a < count; ++a) list[a] = hand_back(std::move(results[a]), sources[a]);
  return std::move(list);
}

// ---------------------------------------------------------------- what the loader costs
// Four float32 inputs of one shape, two results of the first one's kind: all that a call of a scan costs but its
// kernel.
py::tuple probe(py::handle a, py::handle b, py::handle c, py::handle d) {
  const Array x = load_cpu(a.ptr(), "probe: a", {DType::f32});
  const Array y = load_cpu(b.ptr(), "probe: b", {DType::f32});
  const Array z = load_cpu(c.ptr(), "probe: c", {DType::f32});
  const Array w = load_cpu(d.ptr(), "probe: d", {DType::f32});
  check_shape_like(y, "probe: b", x, "a");
  check_shape_like(z, "probe: c", x, "a");
  check_shape_like(w, "probe: d", x, "a");
  Result first = allocate_like(x, DType::f32, x.shape.data(), x.ndim);
  Result second = allocate_like(x, DType::f32, x.shape.data(), x.ndim);
  {
    ReleaseGil release;
    std::fill_n(reinterpret_cast<float*>(first.data), x.size(), 0.0f);
    std::fill_n(reinterpret_cast<float*>(second.data), x.size(), 1.0f);
  }
  return py::make_tuple(hand_back(std::move(first), x), hand_back(std::move(second), x));
}

}  // namespace
}  // namespace fastrl

PYBIND11_MODULE(_C, m) {
  using namespace fastrl;
  m.doc() = "Compiled CPU kernels of fastrl; call them through fastrl.kernels.";
  m.def("simd_level", [] { return simd_level(); });
  m.def("get_num_threads", &num_threads);
  m.def("set_num_threads", [](int n) { chosen_threads = n; });
  m.def("gather_rows", &gather_rows_binding, py::arg("arrays"), py::arg("indices"), py::arg("out"));
  m.def("_probe", &probe, py::arg("a"), py::arg("b"), py::arg("c"), py::arg("d"));
  py::class_<SumTreeCore>(m, "SumTreeCore")
      .def(py::init<int64_t, const std::string&, py::object, py::object>(), py::arg("capacity"), py::arg("dtype"),
           py::arg("state"), py::arg("tensor_type") = py::none())
      .def("update", &SumTreeCore::update, py::arg("indices"), py::arg("priorities"))
      .def("update_from_td_errors", &SumTreeCore::update_from_td_errors, py::arg("indices"), py::arg("td_errors"),
           py::arg("alpha"), py::arg("eps"), py::arg("keep_zeros"))
      .def("get", &SumTreeCore::get, py::arg("indices"))
      .def("find", &SumTreeCore::find, py::arg("prefix_sums"))
      .def("sample", &SumTreeCore::sample, py::arg("batch_size"), py::arg("stratified"), py::arg("replacement"))
      .def("sample_weighted", &SumTreeCore::sample_weighted, py::arg("batch_size"), py::arg("beta"),
           py::arg("normalize"), py::arg("stratified"))
      .def("load", &SumTreeCore::load, py::arg("priorities"))
      .def("priorities", &SumTreeCore::priorities)
      .def("clear", &SumTreeCore::clear)
      .def("__len__", &SumTreeCore::len)
      .def_property_readonly("total", &SumTreeCore::total)
      .def_property_readonly("min", &SumTreeCore::min)
      .def_property_readonly("max", &SumTreeCore::max);
}
