#include <limits>
#include <vector>

#include "binding/bind_cuda.h"
#include "sum_tree/cuda.h"

namespace fastrl {
namespace {

// `device` is the tree's; a CUDA kernel's arguments are never copied to it.
void check_cuda_device(const Array& a, const char* where, DLDevice device) {
  if (a.device.device_type != device.device_type || a.device.device_id != device.device_id)
    raise_value(std::string(where) + " must be on cuda:" + std::to_string(device.device_id) + " like the tree, got " +
                device_text(a));
}

// Works on buffers that Python allocated (fastrl/kernels/_cuda/sum_tree.py), which also checks the numbers it passes
// on.
class SumTreeCore {
 public:
  SumTreeCore(int64_t capacity, const std::vector<int64_t>& widths, py::object leaves, py::object sums, py::object mins,
              py::object maxs, py::object winner, py::object flag, py::object smallest, py::object state) {
    tree_.capacity = capacity;
    tree_.top = static_cast<int>(widths.size()) - 1;
    if (tree_.top < 1 || tree_.top >= kMaxCudaLevels) raise_value("sum_tree: widths must name 2 to 9 levels");
    int64_t start = 0;
    for (int level = 1; level <= tree_.top; ++level) {
      tree_.start[level] = start;
      tree_.nodes[level] = widths[level - 1] / kFanout;
      start += widths[level];
    }
    const Array first = load_buffer(leaves, "sum_tree: leaves", {DType::f32, DType::f64});
    api_ = first.api, device_ = first.device, leaf_ = first.dtype;
    tree_.float64 = leaf_ == DType::f64;
    tree_.leaves = buffer(leaves, "sum_tree: leaves", leaf_, widths[0]);
    tree_.sums = static_cast<double*>(buffer(sums, "sum_tree: sums", DType::f64, start));
    tree_.mins = buffer(mins, "sum_tree: mins", leaf_, start);
    tree_.maxs = buffer(maxs, "sum_tree: maxs", leaf_, start);
    tree_.winner = static_cast<int32_t*>(buffer(winner, "sum_tree: winner", DType::i32, widths[0]));
    tree_.flag = static_cast<uint64_t*>(buffer(flag, "sum_tree: flag", DType::i64, 1));
    tree_.smallest = static_cast<uint64_t*>(buffer(smallest, "sum_tree: smallest", DType::i64, 1));
    tree_.state = static_cast<uint64_t*>(buffer(state, "sum_tree: state", DType::i64, 3));
  }

  void update(py::handle indices, py::handle priorities) {
    CudaUpdate items;
    items.n = -1;
    if (PyLong_CheckExact(indices.ptr()))
      items.n = 1, items.indices = {nullptr, 0, false, py::cast<int64_t>(indices)};
    else
      items.indices = load_indices(indices, "sum_tree.update: indices", items.n);
    if (PyFloat_CheckExact(priorities.ptr()))
      items.values = {nullptr, 0, false, py::cast<double>(priorities)};
    else
      items.values = load_floats(priorities, "sum_tree.update: priorities", items.n);
    run("sum_tree.update", [&](cudaStream_t stream) { return cuda_update(tree_, items, stream); });
  }

  py::object update_from_td_errors(py::handle indices, py::handle td_errors, double alpha, double eps,
                                   bool keep_zeros) {
    CudaUpdate items;
    items.n = -1;
    items.indices = load_indices(indices, "sum_tree.update_from_td_errors: indices", items.n);
    items.values = load_floats(td_errors, "sum_tree.update_from_td_errors: td_errors", items.n);
    items.from_td = true, items.keep_zeros = keep_zeros, items.alpha = alpha, items.eps = eps;
    Result largest = allocate(DType::f64, 0, 0);
    items.largest = reinterpret_cast<double*>(largest.data);
    run("sum_tree.update_from_td_errors", [&](cudaStream_t stream) { return cuda_update(tree_, items, stream); });
    return std::move(largest.object);
  }

  py::object get(py::handle indices) {
    int64_t n = -1;
    const CudaIndices index = load_indices(indices, "sum_tree.get: indices", n);
    Result out = allocate(leaf_, n);
    run("sum_tree.get", [&](cudaStream_t stream) { return cuda_get(tree_, index, n, out.data, stream); });
    return std::move(out.object);
  }

  py::object find(py::handle prefix_sums) {
    int64_t n = -1;
    const CudaFloats u = load_floats(prefix_sums, "sum_tree.find: prefix_sums", n);
    Result out = allocate(DType::i64, n);
    auto* index = reinterpret_cast<int64_t*>(out.data);
    run("sum_tree.find", [&](cudaStream_t stream) { return cuda_find(tree_, u, n, index, stream); });
    return std::move(out.object);
  }

  py::tuple sample(int64_t batch_size, bool stratified, bool replacement) {
    Result indices = allocate(DType::i64, batch_size), probabilities = allocate(DType::f64, batch_size);
    auto* i = reinterpret_cast<int64_t*>(indices.data);
    auto* p = reinterpret_cast<double*>(probabilities.data);
    run("sum_tree.sample", [&](cudaStream_t stream) {
      return replacement ? cuda_sample(tree_, stratified, batch_size, i, p, stream)
                         : cuda_sample_distinct(tree_, batch_size, i, p, stream);
    });
    return py::make_tuple(std::move(indices.object), std::move(probabilities.object));
  }

  py::tuple sample_weighted(int64_t batch_size, double beta, bool whole_tree, bool stratified) {
    Result indices = allocate(DType::i64, batch_size), weights = allocate(leaf_, batch_size);
    auto* i = reinterpret_cast<int64_t*>(indices.data);
    run("sum_tree.sample_weighted", [&](cudaStream_t stream) {
      return cuda_sample_weighted(tree_, stratified, beta, whole_tree, batch_size, i, weights.data, stream);
    });
    return py::make_tuple(std::move(indices.object), std::move(weights.object));
  }

 private:
  static Array load_buffer(py::handle tensor, const char* where, std::initializer_list<DType> allowed) {
    Array a = load(tensor.ptr(), where);
    check_has_data(a, where);
    check_dtype(a, where, allowed);
    return a;
  }

  void* buffer(const py::object& tensor, const char* where, DType dtype, int64_t n) {
    const Array a = load_buffer(tensor, where, {dtype});
    check_cuda_device(a, where, device_);
    if (a.ndim != 1 || a.shape[0] != n || !a.is_contiguous())
      raise_value(std::string(where) + " must be contiguous, of shape (" + std::to_string(n) + ",), got " +
                  shape_text(a.shape, a.ndim));
    owners_.push_back(tensor);
    return a.data;
  }

  // An argument [B] on the tree's device; `n` is B, and -1 before the first one.
  Array load_argument(py::handle tensor, const char* where, std::initializer_list<DType> allowed, int64_t& n) const {
    if (!exchange_api(Py_TYPE(tensor.ptr())))
      raise_type(std::string(where) + " must be a torch tensor on " + device_name() + ", got " +
                 type_name(tensor.ptr()));
    Array a = load(tensor.ptr(), where);
    check_cuda_device(a, where, device_);
    check_has_data(a, where);
    check_dtype(a, where, allowed);
    check_ndim_1(a, where);
    if (n < 0) n = a.shape[0];
    if (a.shape[0] != n)
      raise_value(std::string(where) + " must have shape (" + std::to_string(n) + ",) like indices, got " +
                  shape_text(a.shape, a.ndim));
    if (n > std::numeric_limits<int32_t>::max())
      raise_value(std::string(where) + " must have at most 2**31 - 1 items, got " + std::to_string(n));
    return a;
  }

  CudaIndices load_indices(py::handle indices, const char* where, int64_t& n) const {
    const Array a = load_argument(indices, where, {DType::i64, DType::i32}, n);
    return {a.data, a.strides[0], a.dtype == DType::i32, 0};
  }

  CudaFloats load_floats(py::handle values, const char* where, int64_t& n) const {
    const Array a = load_argument(values, where, {DType::f32, DType::f64}, n);
    return {a.data, a.strides[0], a.dtype == DType::f32, 0};
  }

  std::string device_name() const { return "cuda:" + std::to_string(device_.device_id); }

  Result allocate(DType dtype, int64_t n, int ndim = 1) const {
    return allocate_exchange(api_, device_, dl_dtype_of(dtype), &n, ndim);
  }

  template <class F>
  void run(const char* op, F launches) {
    launch_on(api_, device_, op, launches);
  }

  CudaTree tree_{};
  const DLPackExchangeAPI* api_;
  DLDevice device_;
  DType leaf_;
  std::vector<py::object> owners_;
};

void bind(py::handle m) {
  using O = py::object;
  Class<SumTreeCore, int64_t, std::vector<int64_t>, O, O, O, O, O, O, O, O>(
      m, "SumTreeCore(capacity, widths, leaves, sums, mins, maxs, winner, flag, smallest, state)")
      .method<&SumTreeCore::update>("update(indices, priorities)")
      .method<&SumTreeCore::update_from_td_errors>("update_from_td_errors(indices, td_errors, alpha, eps, keep_zeros)")
      .method<&SumTreeCore::get>("get(indices)")
      .method<&SumTreeCore::find>("find(prefix_sums)")
      .method<&SumTreeCore::sample>("sample(batch_size, stratified, replacement)")
      .method<&SumTreeCore::sample_weighted>("sample_weighted(batch_size, beta, whole_tree, stratified)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
