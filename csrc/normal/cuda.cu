// The policy heads on a GPU: a few neighbouring lanes of a warp share a row. The maths is that of categorical.h and
// normal.h. The warp functions name all 32 lanes: whole warps call them, and what has no row writes nothing.
#include <cmath>

#include "core/cuda_floats.h"
#include "heads/cuda.h"

namespace fastrl {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFF;
constexpr int kWarp = 32;
constexpr int kThreads = 128;

__device__ int64_t thread_index() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

template <class T>
__device__ Real<T> item(const char* data, int64_t offset) {
  return to_real(*reinterpret_cast<const T*>(data + offset));
}

template <class T>
__device__ void put(void* out, int64_t i, double x) {
  static_cast<T*>(out)[i] = from_real<T>(x);
}

template <class T>
__device__ double row_number(const RowNumbers& g, int64_t row) {
  return g.data ? static_cast<double>(item<T>(g.data, row * g.stride)) : 0.0;
}

// ---------------------------------------------------------------- the lanes of a row
template <class T>
__device__ T sum_of(T x, int lanes) {
  for (int h = 1; h < lanes; h *= 2) x += __shfl_xor_sync(kAllLanes, x, h, lanes);
  return x;
}

// A NaN never is the largest.
template <class T>
__device__ T largest_of(T x, int lanes) {
  for (int h = 1; h < lanes; h *= 2) {
    const T other = __shfl_xor_sync(kAllLanes, x, h, lanes);
    x = other > x ? other : x;
  }
  return x;
}

// `before` plus the x of the lanes up to this one, added one after the other: the CPU's order. So it grows with the
// lane, and not where x is 0; a tree of sums does neither.
__device__ double running_sum(double before, double x, int lane, int lanes) {
  double sum = before, mine = before;
  for (int i = 0; i < lanes; ++i) {
    sum += __shfl_sync(kAllLanes, x, i, lanes);
    if (i == lane) mine = sum;
  }
  return mine;
}

struct Row {
  int lane, lanes;
  int64_t row;
  bool here;  // else the last row is worked on again, and nothing written
};

__device__ Row row_of(int lanes, int64_t rows) {
  const int64_t i = thread_index(), row = i / lanes;
  return {static_cast<int>(i % lanes), lanes, row < rows ? row : rows - 1, row < rows};
}

// ---------------------------------------------------------------- categorical
template <class T>
struct LogitRow {
  using R = Real<T>;
  const char* data;
  int64_t stride, actions;
  int lane, lanes;
  R base;
  __device__ LogitRow(const Logits& z, const Row& r)
      : data(z.data + r.row * z.row_stride), stride(z.column_stride), actions(z.actions), lane(r.lane), lanes(r.lanes) {
    R largest = -static_cast<R>(kInf);
    for (int64_t k = lane; k < actions; k += lanes) {
      const R x = raw(k);
      largest = x > largest ? x : largest;
    }
    base = logit_base(largest_of(largest, lanes));
  }
  __device__ R raw(int64_t k) const { return item<T>(data, k * stride); }
  __device__ R difference(int64_t k) const { return logit_difference(raw(k), base, ExpFloor<R>::value); }

  // s = sum e^d and sum e^d d.
  __device__ void totals(double& s, double& sum_ed) const {
    s = 0, sum_ed = 0;
    for (int64_t k = lane; k < actions; k += lanes) {
      const R d = difference(k), e = exp_negative(d);
      s += static_cast<double>(e);
      sum_ed += static_cast<double>(e * d);
    }
    s = sum_of(s, lanes);
    sum_ed = sum_of(sum_ed, lanes);
  }
};

template <class T>
__global__ void categorical_log_prob_entropy(CudaCategorical c, int lanes) {
  const Row r = row_of(lanes, c.logits.rows);
  const LogitRow<T> z(c.logits, r);
  double s, sum_ed;
  z.totals(s, sum_ed);
  if (!r.here || r.lane > 0) return;
  const double log_s = log_total(s);
  const int64_t action = c.action[r.row];
  const bool inside = action >= 0 && action < z.actions;
  put<T>(c.log_prob, r.row, inside ? static_cast<double>(z.raw(action) - z.base) - log_s : kNaN);
  put<T>(c.entropy, r.row, categorical_entropy(s, sum_ed, log_s));
}

template <class T>
__global__ void categorical_gradients(CudaCategorical c, int lanes) {
  const Row r = row_of(lanes, c.logits.rows);
  const LogitRow<T> z(c.logits, r);
  double s, sum_ed;
  z.totals(s, sum_ed);
  if (!r.here) return;
  const double log_s = log_total(s);
  using R = Real<T>;
  const R entropy = static_cast<R>(categorical_entropy(s, sum_ed, log_s)), log_s_R = static_cast<R>(log_s);
  const R inverse = static_cast<R>(1.0 / s), one = 1, zero = 0;
  const int64_t action = c.action[r.row];
  const bool inside = action >= 0 && action < z.actions;
  const R gl = static_cast<R>(inside ? row_number<T>(c.grad_log_prob, r.row) : kNaN);
  const R gh = static_cast<R>(row_number<T>(c.grad_entropy, r.row));
  T* const grad = static_cast<T*>(c.grad_logits) + r.row * z.actions;
  for (int64_t k = r.lane; k < z.actions; k += lanes) {
    const R d = z.difference(k);
    grad[k] = from_real<T>(
        categorical_grad(exp_negative(d) * inverse, d - log_s_R, entropy, k == action ? one : zero, gl, gh));
  }
}

// In float64, in the order of the index.
template <class T>
__global__ void categorical_sample(CudaCategorical c, int lanes) {
  const Row r = row_of(lanes, c.logits.rows);
  const LogitRow<T> z(c.logits, r);
  const double base = static_cast<double>(z.base);
  const auto weight = [&](int64_t k) {
    return k < z.actions ? exp_negative(logit_difference(static_cast<double>(z.raw(k)), base, ExpFloor<double>::value))
                         : 0.0;
  };
  double total = 0;
  for (int64_t k0 = 0; k0 < z.actions; k0 += lanes)
    total = __shfl_sync(kAllLanes, running_sum(total, weight(k0 + r.lane), r.lane, lanes), lanes - 1, lanes);
  const bool valid = total > 0 && total < kInf;
  const double u = c.state ? uniform(philox(c.state[0], c.state[1] + static_cast<uint64_t>(r.row)))
                           : item<double>(c.uniform, r.row * c.uniform_stride);
  // The action is the first one whose prefix sum exceeds u total: how many do not. None after the sum is complete is
  // it, should u total round up to the total.
  double before = 0;
  int count = 0;
  for (int64_t k0 = 0; k0 < z.actions; k0 += lanes) {
    const double prefix = running_sum(before, weight(k0 + r.lane), r.lane, lanes);
    count += prefix <= u * total && prefix < total;
    before = __shfl_sync(kAllLanes, prefix, lanes - 1, lanes);
  }
  count = sum_of(count, lanes);
  if (!r.here || r.lane > 0) return;
  c.drawn[r.row] = valid ? count : -1;
  put<T>(c.log_prob, r.row, valid ? static_cast<double>(z.raw(count)) - base - log_positive(total) : kNaN);
}

__global__ void advance(uint64_t* state, int64_t n) { state[1] += static_cast<uint64_t>(n); }

// ---------------------------------------------------------------- normal
template <class T>
__device__ double element(const Columns& a, int64_t row, int64_t column) {
  return static_cast<double>(item<T>(a.data, row * a.row_stride + column * a.column_stride));
}

template <class T>
__global__ void normal_log_prob_entropy(CudaNormal c, int lanes) {
  const Row r = row_of(lanes, c.rows);
  double log_prob = 0, entropy = 0;
  for (int64_t j = r.lane; j < c.columns; j += lanes) {
    const double s = element<T>(c.log_std, r.row, j);
    const double z = standardize(element<T>(c.action, r.row, j), element<T>(c.mean, r.row, j), exp_bounded(-s)).z;
    log_prob += normal_log_density(z, s);
    entropy += normal_entropy(s);
  }
  log_prob = sum_of(log_prob, lanes);
  entropy = sum_of(entropy, lanes);
  if (!r.here || r.lane > 0) return;
  put<T>(c.log_prob, r.row, log_prob);
  put<T>(c.entropy, r.row, entropy);
}

template <class T>
__global__ void normal_sample(CudaNormal c, int lanes) {
  const Row r = row_of(lanes, c.rows);
  double log_prob = 0;
  for (int64_t j = r.lane; j < c.columns; j += lanes) {
    const int64_t i = r.row * c.columns + j;
    double eps;
    if (!c.state) {
      eps = element<T>(c.noise, r.row, j);
    } else {
      const Philox4 block = philox(c.state[0], c.state[1] + static_cast<uint64_t>(i / 4));
      const NormalPair<double> pair =
          i % 4 < 2 ? normal_pair(block.word[0], block.word[1], 0.0) : normal_pair(block.word[2], block.word[3], 0.0);
      eps = i % 2 ? pair.odd : pair.even;
    }
    const double s = element<T>(c.log_std, r.row, j);
    log_prob += normal_log_density(eps, s);
    if (!r.here) continue;
    put<T>(c.out_action, i, element<T>(c.mean, r.row, j) + exp_bounded(s) * eps);
    if (c.noise_out) put<T>(c.noise_out, i, eps);
  }
  log_prob = sum_of(log_prob, lanes);
  if (r.here && r.lane == 0) put<T>(c.log_prob, r.row, log_prob);
}

// A thread a column of a piece of rows; where log_std is [rows, columns], a piece is one row. f(row, column, log_std,
// e^{sign log_std}) gives the gradient of log_std.
template <class T, class F>
__device__ void for_piece(const CudaNormal& c, double sign, F f) {
  const int64_t piece_rows = c.shared ? kCudaPieceRows : 1;
  const int64_t i = thread_index(), piece = i / c.columns, j = i % c.columns, begin = piece * piece_rows;
  if (begin >= c.rows) return;
  const int64_t end = begin + piece_rows < c.rows ? begin + piece_rows : c.rows;
  const double s = element<T>(c.log_std, begin, j), e = exp_bounded(sign * s);
  double sum = 0;
  for (int64_t row = begin; row < end; ++row) sum += f(row, j, e);
  if (!c.grad_log_std) return;
  if (c.shared)
    c.sums[i] = sum;
  else
    put<T>(c.grad_log_std, i, sum);
}

template <class T>
__global__ void normal_grad(CudaNormal c) {
  for_piece<T>(c, -1.0, [&](int64_t row, int64_t j, double inverse) {
    const Standardized x = standardize(element<T>(c.action, row, j), element<T>(c.mean, row, j), inverse);
    const double gl = row_number<T>(c.grad_log_prob, row), g_mean = gl * x.z_over_sigma;
    const int64_t i = row * c.columns + j;
    if (c.grad_mean) put<T>(c.grad_mean, i, g_mean);
    if (c.grad_action_out) put<T>(c.grad_action_out, i, -g_mean);
    return gl * (x.z * x.z - 1.0) + row_number<T>(c.grad_entropy, row);
  });
}

template <class T>
__global__ void normal_sample_grad(CudaNormal c) {
  for_piece<T>(c, 1.0, [&](int64_t row, int64_t j, double sigma) {
    const double ga = c.grad_action.data ? element<T>(c.grad_action, row, j) : 0.0;
    return ga * sigma * element<T>(c.noise, row, j) - row_number<T>(c.grad_log_prob, row);
  });
}

// A warp a column: the sum over the pieces.
template <class T>
__global__ void add_pieces(CudaNormal c, int64_t pieces) {
  const int64_t j = thread_index() / kWarp;
  double sum = 0;
  if (j < c.columns)
    for (int64_t p = static_cast<int>(threadIdx.x) % kWarp; p < pieces; p += kWarp) sum += c.sums[p * c.columns + j];
  sum = sum_of(sum, kWarp);
  if (j < c.columns && threadIdx.x % kWarp == 0) put<T>(c.grad_log_std, j, sum);
}

// ---------------------------------------------------------------- launches
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t threads, cudaStream_t stream, A... arguments) {
  if (threads == 0) return;
  kernel<<<static_cast<unsigned>((threads + kThreads - 1) / kThreads), kThreads, 0, stream>>>(arguments...);
}

// How many lanes share a row of so many numbers: a power of two.
int lanes_for(int64_t numbers) {
  int lanes = 1;
  while (lanes < kWarp && lanes < numbers) lanes *= 2;
  return lanes;
}

// `kernel_of` a number of a dtype is the kernel for it.
template <class Call, class F>
cudaError_t launch_rows(const Call& call, int64_t rows, int64_t columns, cudaStream_t stream, F kernel_of) {
  const int lanes = lanes_for(columns);
  return typed(call.dtype, [&](auto number) { launch(kernel_of(number), rows * lanes, stream, call, lanes); });
}

template <class F>
cudaError_t launch_pieces(const CudaNormal& call, cudaStream_t stream, F kernel_of) {
  const int64_t pieces = call.shared ? cuda_pieces(call.rows) : call.rows;
  return typed(call.dtype, [&](auto number) {
    launch(kernel_of(number), pieces * call.columns, stream, call);
    if (call.shared && call.grad_log_std)
      launch(add_pieces<decltype(number)>, call.columns * kWarp, stream, call, pieces);
  });
}

}  // namespace

#define FASTRL_KERNEL(name) [](auto number) { return &name<decltype(number)>; }

cudaError_t cuda_categorical_sample(const CudaCategorical& c, cudaStream_t stream) {
  const cudaError_t error = launch_rows(c, c.logits.rows, c.logits.actions, stream, FASTRL_KERNEL(categorical_sample));
  if (error != cudaSuccess || !c.state) return error;
  advance<<<1, 1, 0, stream>>>(c.state, c.logits.rows);
  return cudaGetLastError();
}

cudaError_t cuda_categorical_log_prob_entropy(const CudaCategorical& c, cudaStream_t stream) {
  return launch_rows(c, c.logits.rows, c.logits.actions, stream, FASTRL_KERNEL(categorical_log_prob_entropy));
}

cudaError_t cuda_categorical_grad(const CudaCategorical& c, cudaStream_t stream) {
  return launch_rows(c, c.logits.rows, c.logits.actions, stream, FASTRL_KERNEL(categorical_gradients));
}

cudaError_t cuda_normal_sample(const CudaNormal& c, cudaStream_t stream) {
  const cudaError_t error = launch_rows(c, c.rows, c.columns, stream, FASTRL_KERNEL(normal_sample));
  if (error != cudaSuccess || !c.state) return error;
  advance<<<1, 1, 0, stream>>>(c.state, normal_blocks(c.rows * c.columns));
  return cudaGetLastError();
}

cudaError_t cuda_normal_sample_grad(const CudaNormal& c, cudaStream_t stream) {
  return launch_pieces(c, stream, FASTRL_KERNEL(normal_sample_grad));
}

cudaError_t cuda_normal_log_prob_entropy(const CudaNormal& c, cudaStream_t stream) {
  return launch_rows(c, c.rows, c.columns, stream, FASTRL_KERNEL(normal_log_prob_entropy));
}

cudaError_t cuda_normal_grad(const CudaNormal& c, cudaStream_t stream) {
  return launch_pieces(c, stream, FASTRL_KERNEL(normal_grad));
}

#undef FASTRL_KERNEL

}  // namespace fastrl
