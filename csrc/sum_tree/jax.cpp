// The sum tree as handlers of XLA's foreign function interface: fastrl/jax.py registers them with JAX and calls them.
// A tree is two arrays: leaves [..., L], and nodes uint32 [..., K], which hold its sums; what is before L is a batch.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "binding/function.h"
#include "binding/registry.h"
#include "binding/scalars.h"
#include "binding/xla_call.h"
#include "sum_tree/sum_tree.h"

namespace fastrl {
namespace {

int64_t last(const xla::Buffer& x) { return x.rank ? x.dims[x.rank - 1] : 0; }

template <class T>
T* data_of(const xla::Buffer& x) {
  return static_cast<T*>(x.data);
}

// `size` bytes as the tree needs them. XLA's own arrays are so aligned, but not all that it takes over from others.
class Aligned {
 public:
  Aligned(char* data, size_t size) : given_(data), size_(size) {
    if (reinterpret_cast<uintptr_t>(data) % kTreeAlign == 0) return;
    copy_.resize(size + kTreeAlign);
    void* at = copy_.data();
    size_t space = copy_.size();
    aligned_ = static_cast<char*>(std::align(kTreeAlign, size, at, space));
    std::memcpy(aligned_, given_, size);
  }
  char* data() const { return aligned_ ? aligned_ : given_; }
  void write_back() const {
    if (aligned_) std::memcpy(given_, aligned_, size_);
  }

 private:
  char *given_, *aligned_ = nullptr;
  size_t size_;
  std::vector<char> copy_;
};

// One call. Its last axis apart, an argument has the batch axes of the first result, or 1 in the place of some.
class TreeCall : public xla::Call {
 public:
  explicit TreeCall(const xla::CallFrame& frame)
      : xla::Call(frame), capacity_(whole("capacity")), float64_(argument(0).dtype == xla::kF64) {
    if (!float64_ && argument(0).dtype != xla::kF32) throw std::invalid_argument("leaves are not float32 or float64");
    if (capacity_ < 1 || last(argument(0)) != sum_tree_leaves(capacity_) || argument(1).dtype != xla::kU32 ||
        size_t(last(argument(1))) * 4 != sum_tree_node_bytes(capacity_, float64_))
      throw std::invalid_argument("these are not the arrays of a sum tree of this capacity");
    for (int64_t k = 0; k < arguments(); ++k)
      if (argument(k).rank != result(0).rank || result(0).rank < 1) throw std::invalid_argument("wrong rank");
    for (int64_t d = 0; d < result(0).rank - 1; ++d) batch_ *= result(0).dims[d];
  }

  // (leaves, nodes, indices, priorities) -> (leaves, nodes, total [..., 1]), the first two in place where XLA lets us.
  void update() {
    const int64_t n = last(argument(2));
    for (int k = 0; k < 2; ++k) {
      const size_t size = bytes(argument(k));
      if (argument(k).data != result(k).data && size) std::memcpy(result(k).data, argument(k).data, size);
    }
    std::vector<int64_t> wide;
    for (int64_t b = 0; b < batch_; ++b) {
      const Aligned leaves(row(result(0), b), row_bytes(result(0))), nodes(row(result(1), b), row_bytes(result(1)));
      const auto tree = sum_tree_in(capacity_, float64_, leaves.data(), nodes.data());
      const char* priorities = row(argument(3), b);
      const int64_t* indices = indices_of(argument(2), b, &wide);
      raise_bad(argument(3).dtype == xla::kF64 ? tree->update(indices, reinterpret_cast<const double*>(priorities), n)
                                               : tree->update(indices, reinterpret_cast<const float*>(priorities), n));
      leaves.write_back(), nodes.write_back();
      put(result(2), b, tree->total());
    }
  }

  // (leaves, nodes, seed uint32 [..., 2]) -> (indices, probabilities); of an empty tree 0 and NaN.
  void sample() {
    const bool stratified = whole("stratified") != 0;
    const xla::Buffer &indices = result(0), &probabilities = result(1);
    const int64_t n = last(indices);
    std::vector<int64_t> i(n);
    std::vector<double> p(n);
    for (int64_t b = 0; b < batch_; ++b) {
      const Aligned leaves(row(argument(0), b), row_bytes(argument(0)));
      const Aligned nodes(row(argument(1), b), row_bytes(argument(1)));
      uint64_t state[2] = {0, 0};  // of a Generator with this seed
      std::memcpy(state, row(argument(2), b), sizeof state[0]);
      const auto tree = sum_tree_in(capacity_, float64_, leaves.data(), nodes.data());
      if (tree->sample(state, stratified, n, i.data(), p.data(), Threads(1)) != SumTree::Status::ok) {
        std::fill(i.begin(), i.end(), 0);
        std::fill(p.begin(), p.end(), std::numeric_limits<double>::quiet_NaN());
      }
      for (int64_t k = 0; k < n; ++k) put(indices, b * n + k, i[k]), put(probabilities, b * n + k, p[k]);
    }
  }

 private:
  static int64_t item(const xla::Buffer& x) { return x.dtype == xla::kF64 || x.dtype == xla::kS64 ? 8 : 4; }
  static size_t row_bytes(const xla::Buffer& x) { return size_t(last(x) * item(x)); }
  static size_t bytes(const xla::Buffer& x) {
    size_t all = size_t(item(x));
    for (int64_t d = 0; d < x.rank; ++d) all *= size_t(x.dims[d]);
    return all;
  }

  // The row of `x` for item b of the batch.
  char* row(const xla::Buffer& x, int64_t b) const {
    int64_t index = 0, stride = 1;
    for (int64_t d = result(0).rank - 2; d >= 0; --d) {
      const int64_t i = b % result(0).dims[d];
      b /= result(0).dims[d];
      if (x.dims[d] == 1) continue;
      index += i * stride;
      stride *= x.dims[d];
    }
    return data_of<char>(x) + index * last(x) * item(x);
  }

  const int64_t* indices_of(const xla::Buffer& x, int64_t b, std::vector<int64_t>* wide) const {
    if (x.dtype == xla::kS64) return reinterpret_cast<const int64_t*>(row(x, b));
    const auto* narrow = reinterpret_cast<const int32_t*>(row(x, b));
    wide->assign(narrow, narrow + last(x));
    return wide->data();
  }

  template <class V>
  static void put(const xla::Buffer& x, int64_t i, V value) {
    if (x.dtype == xla::kF64) data_of<double>(x)[i] = static_cast<double>(value);
    if (x.dtype == xla::kF32) data_of<float>(x)[i] = static_cast<float>(value);
    if (x.dtype == xla::kS64) data_of<int64_t>(x)[i] = static_cast<int64_t>(value);
    if (x.dtype == xla::kS32) data_of<int32_t>(x)[i] = static_cast<int32_t>(value);
  }

  void raise_bad(const BadItem& bad) const {
    const std::string at = "[" + std::to_string(bad.position) + "] is ";
    if (bad.kind == BadItem::index)
      throw std::invalid_argument("sum_tree.update: indices" + at + std::to_string(bad.index_value) + ", outside [0, " +
                                  std::to_string(capacity_) + ")");
    if (bad.kind != BadItem::none)
      throw std::invalid_argument("sum_tree.update: priorities" + at + std::to_string(bad.value) + ", must be " +
                                  (bad.kind == BadItem::not_finite_or_negative ? "finite and >= 0"
                                   : float64_ ? "at most 2**960 in a float64 tree"
                                              : "at most 3.4028234663852886e+38 in a float32 tree"));
  }

  const int64_t capacity_;
  const bool float64_;
  int64_t batch_ = 1;
};

void update(TreeCall& call) { call.update(); }
void sample(TreeCall& call) { call.sample(); }

const xla::Handler handlers[] = {
    {"sum_tree_update", &xla::handle<TreeCall, update>},
    {"sum_tree_sample", &xla::handle<TreeCall, sample>},
};

// How many leaves and uint32 of nodes a tree has.
py::tuple jax_sum_tree_sizes(int64_t capacity, bool float64) {
  return py::make_tuple(sum_tree_leaves(capacity), sum_tree_node_bytes(capacity, float64) / 4);
}

const Binding binding([](py::handle m) { def<&jax_sum_tree_sizes>(m, "jax_sum_tree_sizes(capacity, float64)"); });

}  // namespace
}  // namespace fastrl
