#include <limits>
#include <memory>
#include <vector>

#include "binding/bind.h"
#include "sum_tree/sum_tree.h"

namespace fastrl {
namespace {

constexpr int64_t kMaxBatch = 2147483647;

class SumTreeCore {
 public:
  SumTreeCore(int64_t capacity, const std::string& dtype, py::object state, py::object tensor_type)
      : tree_(make_sum_tree(check_capacity(capacity), dtype == "float64")),
        capacity_(capacity),
        leaf_(dtype == "float64" ? DType::f64 : DType::f32),
        state_owner_(std::move(state)) {
    const Array s = load_cpu(state_owner_.ptr(), "sum_tree: state", {DType::u64});
    if (s.ndim != 1 || s.shape[0] != 2 || s.strides[0] != 8) raise_value("sum_tree: state must be uint64 [2]");
    state_ = reinterpret_cast<uint64_t*>(s.data);
    if (!tensor_type.is_none()) {
      like_.kind = Kind::exchange;
      like_.api = exchange_api(reinterpret_cast<PyTypeObject*>(tensor_type.ptr()));
      if (!like_.api) {  // torch before 2.10: hand_back wraps NumPy
        prototype_ = import_module("torch").attr("empty")(0);
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
    const Threads threads = threads_and_pieces(0.03 * static_cast<double>(n));
    SumTree::Status status;
    {
      ReleaseGil release;
      status =
          replacement ? tree_->sample(state_, stratified, n, i, p, threads) : tree_->sample_distinct(state_, n, i, p);
    }
    if (status == SumTree::Status::too_few) {
      const std::string count = std::to_string(len());
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
    const Threads threads = threads_and_pieces(0.03 * static_cast<double>(n));
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
    const Array p = load_cpu(priorities.ptr(), "sum_tree.load: priorities", {leaf_});
    check_ndim_1(p, "sum_tree.load: priorities");
    if (p.shape[0] != capacity_) raise_value("sum_tree.load: priorities must have one value a leaf");
    raise_bad(leaf_ == DType::f32 ? load_copy<float>(p) : load_copy<double>(p));
  }

  bool acquire() {
    return without_gil([&] { return tree_->acquire(); });
  }
  void release() { tree_->release(); }

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

  static int64_t check_capacity(int64_t capacity) {
    if (capacity < 1 || capacity > kMaxBatch)
      raise_value("sum_tree: capacity must be in [1, " + std::to_string(kMaxBatch) + "], got " +
                  std::to_string(capacity));
    return capacity;
  }

  template <class T>
  BadItem load_copy(const Array& priorities) {
    const Contiguous<T> leaves(priorities, /*copy=*/true);
    ReleaseGil release;
    return tree_->load(leaves.data());
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
    const Threads threads = threads_and_pieces(0.03 * static_cast<double>(n));
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

void bind(py::handle m) {
  Class<SumTreeCore, int64_t, std::string, py::object, py::object>(
      m, "SumTreeCore(capacity, dtype, state, tensor_type=None)")
      .method<&SumTreeCore::update>("update(indices, priorities)")
      .method<&SumTreeCore::update_from_td_errors>("update_from_td_errors(indices, td_errors, alpha, eps, keep_zeros)")
      .method<&SumTreeCore::get>("get(indices)")
      .method<&SumTreeCore::find>("find(prefix_sums)")
      .method<&SumTreeCore::sample>("sample(batch_size, stratified, replacement)")
      .method<&SumTreeCore::sample_weighted>("sample_weighted(batch_size, beta, normalize, stratified)")
      .method<&SumTreeCore::load>("load(priorities)")
      .method<&SumTreeCore::priorities>("priorities()")
      .method<&SumTreeCore::clear>("clear()")
      .method<&SumTreeCore::acquire>("acquire()")
      .method<&SumTreeCore::release>("release()")
      .method<&SumTreeCore::len>("__len__()")
      .property<&SumTreeCore::total>("total")
      .property<&SumTreeCore::min>("min")
      .property<&SumTreeCore::max>("max");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
