// The sum tree on a GPU. 16 lanes, half a warp, share a node: each holds one child. Every sum is added in the order of
// prefix_sums (sum_tree.h) and nothing is fused into a multiply-add (CMakeLists.txt), so that indices, probabilities
// and sums are those of the CPU tree, bit for bit. The warp functions below name all 32 lanes: whole warps call them,
// and a half that has nothing to do goes along and writes nothing.
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/simd_math.h"
#include "random/random.h"
#include "sum_tree/cuda.h"

namespace fastrl {
inline namespace sum_tree_cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFF;
constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kGroups = kThreads / kFanout;  // nodes or draws that a block works on at once

template <class T>
struct Leaf {
  static constexpr double kLargest =
      std::is_same<T, float>::value ? double{std::numeric_limits<float>::max()} : kMaxFloat64Priority;
  static constexpr double kSmallestNormal = std::numeric_limits<T>::min();
};

// CudaTree with its leaf type.
template <class T>
struct Tree : CudaTree {
  explicit Tree(const CudaTree& tree) : CudaTree(tree) {}
  __device__ T* leaf(int64_t i) const { return static_cast<T*>(leaves) + i; }
  __device__ T* min(int64_t i) const { return static_cast<T*>(mins) + i; }
  __device__ T* max(int64_t i) const { return static_cast<T*>(maxs) + i; }
  __device__ bool inside(int64_t i) const { return i >= 0 && i < capacity; }
  __device__ double total() const { return sums[start[top]]; }

  __device__ void raise(int64_t position, CudaFlag kind) const {
    atomicMin(reinterpret_cast<unsigned long long*>(flag), static_cast<unsigned long long>(position << 4 | kind));
  }
};

// ---------------------------------------------------------------- the 16 lanes of a node
__device__ int lane() { return static_cast<int>(threadIdx.x) % kFanout; }
__device__ int half() { return static_cast<int>(threadIdx.x) / kFanout % 2; }
__device__ int64_t thread_index() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// prefix_sums (sum_tree.h) of the values of the lanes.
__device__ double scan(double x) {
  for (int h = 1; h < kFanout; h *= 2) {
    const double before = __shfl_sync(kAllLanes, x, (lane() & ~(2 * h - 1)) + h - 1, kFanout);
    if (lane() & h) x += before;
  }
  return x;
}

// How many of the 16 lanes say yes.
__device__ int count(bool yes) { return __popc(__ballot_sync(kAllLanes, yes) >> (half() * kFanout) & 0xFFFF); }

// This lane's child, at `level`, of `node` at level + 1.
template <class T>
__device__ double child(const Tree<T>& tree, int level, int64_t node) {
  const int64_t at = node * kFanout + lane();
  return level > 0 ? tree.sums[tree.start[level] + at] : static_cast<double>(*tree.leaf(at));
}

// The leaf that holds u: in each node the first child that ends beyond it.
template <class T>
__device__ int64_t find_leaf(const Tree<T>& tree, double u) {
  int64_t node = 0;
  for (int level = tree.top - 1; level >= 0; --level) {
    const double prefix = scan(child(tree, level, node));
    const double sum = __shfl_sync(kAllLanes, prefix, kFanout - 1, kFanout);
    // Rounding can step past the end: then the last child that adds something.
    const int first_beyond = count(prefix <= u), last_positive = count(prefix < sum);
    const int k = first_beyond < kFanout ? first_beyond : last_positive;
    const double before = __shfl_sync(kAllLanes, prefix, k > 0 ? k - 1 : 0, kFanout);
    if (k > 0) u -= before;
    node = node * kFanout + k;
  }
  return node;
}

// Sum, smallest positive and largest value of `node` from its children.
template <class T>
__device__ void recompute(const Tree<T>& tree, int level, int64_t node, bool write) {
  const int64_t at = node * kFanout + lane();
  T low, high;
  if (level == 1) {
    high = *tree.leaf(at);
    low = high > 0 ? high : static_cast<T>(kInf);
  } else {
    low = *tree.min(tree.start[level - 1] + at);
    high = *tree.max(tree.start[level - 1] + at);
  }
  const double prefix = scan(child(tree, level - 1, node));
  for (int h = 1; h < kFanout; h *= 2) {
    const T other_low = __shfl_xor_sync(kAllLanes, low, h, kFanout);
    const T other_high = __shfl_xor_sync(kAllLanes, high, h, kFanout);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  if (write && lane() == kFanout - 1) {
    const int64_t to = tree.start[level] + node;
    tree.sums[to] = prefix;
    *tree.min(to) = low;
    *tree.max(to) = high;
  }
}

// ---------------------------------------------------------------- update
// (|td| + eps)^alpha, in [low, high] where |td| + eps > 0.
__device__ double td_priority(double td, double alpha, double eps, double low, double high) {
  const double x = std::fabs(td) + eps;
  if (!(x > 0)) return alpha == 0 ? 1.0 : 0.0;
  const double p = alpha == 1 ? x : exp_bounded(alpha * log_positive(x));
  return p < low ? low : p > high ? high : p;
}

template <class T>
__device__ T new_leaf(const CudaUpdate& items, int64_t i, T old) {
  if (items.keep_zeros && !(old > 0)) return 0;
  const double value = items.values[i];
  if (!items.from_td) {  // -0 becomes 0; what is positive stays so, and is normal
    const T leaf = static_cast<T>(value) + T(0);
    return value > 0 && leaf < static_cast<T>(Leaf<T>::kSmallestNormal) ? static_cast<T>(Leaf<T>::kSmallestNormal)
                                                                        : leaf;
  }
  return static_cast<T>(td_priority(value, items.alpha, items.eps, Leaf<T>::kSmallestNormal, Leaf<T>::kLargest));
}

// Whether item i can be written; else it is flagged.
template <class T>
__device__ bool check(const Tree<T>& tree, const CudaUpdate& items, int64_t i) {
  if (!tree.inside(items.indices[i])) {
    tree.raise(i, items.from_td ? kTdIndex : kUpdateIndex);
    return false;
  }
  const double value = items.values[i];
  if (items.from_td) {
    if (value > -kInf && value < kInf) return true;
    tree.raise(i, kTdError);
    return false;
  }
  if (value >= 0 && value <= Leaf<T>::kLargest) return true;
  tree.raise(i, value >= 0 && value < kInf ? kUpdatePriorityTooLarge : kUpdatePriority);
  return false;
}

// Of the valid items of a leaf the last wins.
template <class T>
__global__ void claim(Tree<T> tree, CudaUpdate items) {
  const int64_t i = thread_index();
  double p = 0;
  if (i < items.n && check(tree, items, i)) {
    const int64_t index = items.indices[i];
    atomicMax(tree.winner + index, static_cast<int32_t>(i));
    if (items.largest) p = new_leaf(items, i, *tree.leaf(index));
  }
  if (!items.largest) return;
  for (int h = 1; h < kWarp; h *= 2) {
    const double other = __shfl_xor_sync(kAllLanes, p, h);
    p = other > p ? other : p;
  }
  // The bits of numbers >= 0 are ordered as the numbers are.
  if (threadIdx.x % kWarp == 0 && p > 0)
    atomicMax(reinterpret_cast<unsigned long long*>(items.largest), static_cast<unsigned long long>(bits_of(p)));
}

template <class T>
__global__ void write(Tree<T> tree, CudaUpdate items) {
  const int64_t i = thread_index();
  if (i >= items.n) return;
  const int64_t index = items.indices[i];
  // An invalid item has claimed nothing. Atomic, because the other items of the leaf look at the same number.
  const auto item = static_cast<int32_t>(i);
  if (!tree.inside(index) || atomicCAS(tree.winner + index, item, -1) != item) return;
  T* leaf = tree.leaf(index);
  *leaf = new_leaf(items, i, *leaf);
}

// Recomputes the items' ancestors at the levels first .. last; several levels only in one block. Items that share an
// ancestor write the same numbers to it; where the level has no more nodes than there are items, all its nodes are
// done.
template <class T>
__global__ void repair(Tree<T> tree, CudaUpdate items, int first, int last) {
  const int64_t i = thread_index() / kFanout;
  for (int level = first; level <= last; ++level) {
    int64_t node = i;
    bool good = i < tree.nodes[level];
    if (tree.nodes[level] > items.n) {
      const int64_t index = i < items.n ? items.indices[i] : -1;
      good = tree.inside(index);
      node = index >> (4 * level);
    }
    recompute(tree, level, good ? node : 0, good);
    __syncthreads();
  }
}

// ---------------------------------------------------------------- get and find
template <class T>
__global__ void get(Tree<T> tree, CudaIndices indices, int64_t n, T* out) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const int64_t index = indices[i];
  const bool good = tree.inside(index);
  if (!good) tree.raise(i, kGetIndex);
  out[i] = good ? *tree.leaf(index) : T(0);
}

template <class T>
__global__ void find(Tree<T> tree, CudaFloats values, int64_t n, int64_t* out) {
  const int64_t i = thread_index() / kFanout;
  const double total = tree.total();
  double u = i < n ? values[i] : 0.0;
  if (!(total > 0 && u >= 0 && u <= total)) {
    if (i < n && lane() == 0) tree.raise(i, total > 0 ? kFindValue : kFindEmpty);
    u = u > total ? total : 0.0;
  }
  const int64_t leaf = find_leaf(tree, u);
  if (i < n && lane() == 0) out[i] = leaf;
}

// ---------------------------------------------------------------- sample
// Draws with replacement; `priorities` or `probabilities` is null. Of a tree whose total is 0: indices 0, numbers 0.
template <class T>
__global__ void draw(Tree<T> tree, bool stratified, int64_t n, int64_t* indices, double* probabilities, T* priorities) {
  const int64_t i = thread_index() / kFanout;
  const double total = tree.total();
  const double r = uniform(philox(tree.state[0], tree.state[1] + static_cast<uint64_t>(i)));
  const double at = static_cast<double>(i) + r, slice = total / static_cast<double>(n);
  // A slice that is no normal number has too few bits.
  const double in_slices = slice >= Leaf<double>::kSmallestNormal ? at * slice : at / static_cast<double>(n) * total;
  const double u = stratified ? in_slices : r * total;
  const int64_t leaf = find_leaf(tree, u);
  const T p = *tree.leaf(leaf);
  if (i < n && lane() == 0) {
    indices[i] = leaf;
    if (probabilities)
      probabilities[i] = total > 0 ? static_cast<double>(p) / total : 0.0;
    else
      priorities[i] = p;
  }
  if (probabilities) return;
  double low = i < n ? static_cast<double>(p) : kInf;
  const double other = __shfl_xor_sync(kAllLanes, low, kFanout);
  low = other < low ? other : low;
  if (threadIdx.x % kWarp == 0)
    atomicMin(reinterpret_cast<unsigned long long*>(tree.smallest), static_cast<unsigned long long>(bits_of(low)));
}

// weights holds the priorities p; w = (p_min / p)^beta.
template <class T>
__global__ void weigh(Tree<T> tree, double beta, bool whole_tree, int64_t n, T* weights) {
  const int64_t i = thread_index();
  if (i >= n || !(tree.total() > 0)) return;
  const double p_min = whole_tree ? static_cast<double>(*tree.min(tree.start[tree.top])) : double_of(*tree.smallest);
  const double p = static_cast<double>(weights[i]);
  weights[i] = static_cast<T>(exp_bounded(beta * (log_positive(p_min) - log_positive(p))));
}

// After the draws: the generator goes on, and the batch's minimum is reset.
template <class T>
__global__ void advance(Tree<T> tree, int64_t n, CudaFlag empty) {
  *tree.smallest = ~uint64_t{0};
  if (tree.total() > 0)
    tree.state[1] += static_cast<uint64_t>(n);
  else
    tree.raise(0, empty);
}

// Successive sampling by one warp, whose halves do the same work: draw, set the leaf to 0, draw from the rest; then all
// leaves are put back. Only sums change meanwhile, and the same children give the same sums afterwards.
template <class T>
__global__ void draw_distinct(Tree<T> tree, int64_t n, int64_t* indices, double* probabilities) {
  const int thread = static_cast<int>(threadIdx.x);
  const double total = tree.total();
  int64_t drawn = 0;
  for (; drawn < n; ++drawn) {
    const double left = tree.total();
    if (!(left > 0)) break;
    const double r = uniform(philox(tree.state[0], tree.state[1] + static_cast<uint64_t>(drawn)));
    int64_t node = find_leaf(tree, r * left);
    __syncwarp();  // all lanes have read the leaf
    if (thread == 0) {
      indices[drawn] = node;
      probabilities[drawn] = *tree.leaf(node);
      *tree.leaf(node) = 0;
    }
    __syncwarp();
    for (int level = 1; level <= tree.top; ++level) {
      node /= kFanout;
      const double sum = scan(child(tree, level - 1, node));
      if (thread == kFanout - 1) tree.sums[tree.start[level] + node] = sum;
      __syncwarp();
    }
  }
  for (int64_t i = thread; i < drawn; i += kWarp) *tree.leaf(indices[i]) = static_cast<T>(probabilities[i]);
  __syncwarp();
  for (int level = 1; level <= tree.top; ++level) {
    for (int64_t pair = 0; pair < drawn; pair += 2) {
      const int64_t node = indices[pair + half() < drawn ? pair + half() : pair] >> (4 * level);
      const double sum = scan(child(tree, level - 1, node));
      if (lane() == kFanout - 1) tree.sums[tree.start[level] + node] = sum;
    }
    __syncwarp();
  }
  for (int64_t i = thread; i < n; i += kWarp) {
    if (i >= drawn) indices[i] = 0;
    probabilities[i] = i < drawn ? probabilities[i] / total : 0.0;
  }
  if (thread > 0) return;
  if (drawn == n)
    tree.state[1] += static_cast<uint64_t>(n);
  else
    tree.raise(0, drawn == 0 ? kSampleEmpty : kSampleTooFew);
}

// ---------------------------------------------------------------- launches
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t threads, cudaStream_t stream, A... arguments) {
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  kernel<<<blocks, kThreads, 0, stream>>>(arguments...);
}

template <class T>
void update(const Tree<T>& tree, const CudaUpdate& items, cudaStream_t stream) {
  launch(claim<T>, items.n, stream, tree, items);
  launch(write<T>, items.n, stream, tree, items);
  for (int level = 1; level <= tree.top; ++level) {
    const int64_t n = items.n < tree.nodes[level] ? items.n : tree.nodes[level];
    const int last = n <= kGroups ? tree.top : level;  // what one block does in one go it does up to the root
    launch(repair<T>, n * kFanout, stream, tree, items, level, last);
    if (last == tree.top) break;
  }
}

template <class T>
void sample(const Tree<T>& tree, bool stratified, int64_t n, int64_t* indices, double* probabilities,
            cudaStream_t stream) {
  launch(draw<T>, n * kFanout, stream, tree, stratified, n, indices, probabilities, static_cast<T*>(nullptr));
  advance<<<1, 1, 0, stream>>>(tree, n, kSampleEmpty);
}

template <class T>
void sample_weighted(const Tree<T>& tree, bool stratified, double beta, bool whole_tree, int64_t n, int64_t* indices,
                     T* weights, cudaStream_t stream) {
  launch(draw<T>, n * kFanout, stream, tree, stratified, n, indices, static_cast<double*>(nullptr), weights);
  launch(weigh<T>, n, stream, tree, beta, whole_tree, n, weights);
  advance<<<1, 1, 0, stream>>>(tree, n, kWeightedEmpty);
}

// f with the tree in its leaf type.
template <class F>
cudaError_t typed(const CudaTree& tree, F f) {
  if (tree.float64)
    f(Tree<double>(tree), double());
  else
    f(Tree<float>(tree), float());
  return cudaGetLastError();
}

}  // namespace sum_tree_cuda

cudaError_t cuda_update(const CudaTree& tree, const CudaUpdate& items, cudaStream_t stream) {
  if (items.largest) {
    const cudaError_t error = cudaMemsetAsync(items.largest, 0, sizeof(double), stream);
    if (error != cudaSuccess) return error;
  }
  if (items.n == 0) return cudaSuccess;
  return typed(tree, [&](auto typed_tree, auto) { update(typed_tree, items, stream); });
}

cudaError_t cuda_get(const CudaTree& tree, const CudaIndices& indices, int64_t n, void* out, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return typed(tree, [&](auto typed_tree, auto leaf) {
    using T = decltype(leaf);
    launch(get<T>, n, stream, typed_tree, indices, n, static_cast<T*>(out));
  });
}

cudaError_t cuda_find(const CudaTree& tree, const CudaFloats& u, int64_t n, int64_t* out, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return typed(tree, [&](auto typed_tree, auto leaf) {
    launch(find<decltype(leaf)>, n * kFanout, stream, typed_tree, u, n, out);
  });
}

cudaError_t cuda_sample(const CudaTree& tree, bool stratified, int64_t n, int64_t* indices, double* probabilities,
                        cudaStream_t stream) {
  return typed(tree, [&](auto typed_tree, auto) { sample(typed_tree, stratified, n, indices, probabilities, stream); });
}

cudaError_t cuda_sample_distinct(const CudaTree& tree, int64_t n, int64_t* indices, double* probabilities,
                                 cudaStream_t stream) {
  return typed(tree, [&](auto typed_tree, auto leaf) {
    draw_distinct<decltype(leaf)><<<1, kWarp, 0, stream>>>(typed_tree, n, indices, probabilities);
  });
}

cudaError_t cuda_sample_weighted(const CudaTree& tree, bool stratified, double beta, bool whole_tree, int64_t n,
                                 int64_t* indices, void* weights, cudaStream_t stream) {
  return typed(tree, [&](auto typed_tree, auto leaf) {
    sample_weighted(typed_tree, stratified, beta, whole_tree, n, indices, static_cast<decltype(leaf)*>(weights),
                    stream);
  });
}

}  // namespace fastrl
