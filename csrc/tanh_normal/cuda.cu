// The tanh-Gaussian head on a GPU. The maths is that of tanh_normal.h; float16 and bfloat16 are worked on as float32.
// Forward, neighbouring lanes of a warp share a row, four columns each in turn: one block of random numbers. Backward,
// a thread a column of one row or, where log_std is [columns], of a piece of rows.
#include <cfloat>
#include <cmath>

#include "heads/rows.cuh"
#include "tanh_normal/cuda.h"

namespace fastrl {
inline namespace tanh_normal_cuda {

constexpr int kColumns = 4;  // a lane's at a time

template <class T>
__device__ double bound_at(const CudaBound& b, int64_t column) {
  return b.data ? static_cast<double>(item<T>(b.data, column * b.stride))
                : static_cast<double>(to_real(from_real<T>(b.number)));
}

// The next number of the dtype after x on the way to y.
template <class T>
__device__ double next_number(double x, double y) {
  if constexpr (std::is_same<T, double>::value) {
    return nextafter(x, y);
  } else if constexpr (std::is_same<T, float>::value) {
    return static_cast<double>(nextafterf(static_cast<float>(x), static_cast<float>(y)));
  } else {
    if (!(x < y || x > y)) return x + y;
    const T from = from_real<T>(x);
    unsigned short bits;
    memcpy(&bits, &from, sizeof bits);
    if (x == 0)
      bits = y > 0 ? 1 : 0x8001;
    else
      bits = static_cast<unsigned short>((x < y) == (x > 0) ? bits + 1 : bits - 1);
    T next;
    memcpy(&next, &bits, sizeof next);
    return static_cast<double>(to_real(next));
  }
}

// The bounds of a column; NaN unless they are finite, low < high, and a number lies between.
template <class T>
__device__ Bound bound_of(const CudaTanhNormal& c, int64_t column) {
  Bound b{bound_at<T>(c.low, column), bound_at<T>(c.high, column), 0, 0};
  const bool good = -kInf < b.low && b.low < b.high && b.high < kInf && next_number<T>(b.low, b.high) < b.high;
  if (!good) b.low = b.high = kNaN;
  return b;
}

template <class T>
__device__ double largest_number();
template <>
__device__ double largest_number<double>() {
  return DBL_MAX;
}
template <>
__device__ double largest_number<float>() {
  return FLT_MAX;
}
template <>
__device__ double largest_number<__half>() {
  return 65504.0;
}
template <>
__device__ double largest_number<__nv_bfloat16>() {
  return 0x1.FEp127;
}

template <class T>
__device__ Real<T> limit(double x) {
  return to_real(from_real<T>(x));
}

// f(column) for the columns of a lane.
template <class F>
__device__ void for_columns(int64_t columns, int lane, int lanes, F f) {
  for (int64_t begin = int64_t{lane} * kColumns; begin < columns; begin += int64_t{lanes} * kColumns) {
    const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
    for (int64_t j = begin; j < end; ++j) f(j);
  }
}

template <class T>
__global__ void sample(CudaTanhNormal c, int lanes) {
  using R = Real<T>;
  const Row r = row_of(lanes, c.rows);
  const R low = limit<T>(c.log_std_min), high = limit<T>(c.log_std_max), zero = 0;
  const uint64_t counter = c.state ? take_blocks(c.state, normal_blocks(c.rows * c.columns)) : 0;
  double log_prob = 0;
  int64_t drawn = -1;
  Philox4 block{};
  for_columns(c.columns, r.lane, lanes, [&](int64_t j) {
    const int64_t i = r.row * c.columns + j;
    R eps;
    if (c.state) {
      if (i / 4 != drawn) {
        drawn = i / 4;
        block = philox(c.state[0], counter + static_cast<uint64_t>(drawn));
      }
      const bool second = i % 4 >= 2;
      const NormalPair<R> pair =
          normal_pair(second ? block.word[2] : block.word[0], second ? block.word[3] : block.word[1], zero);
      eps = i % 2 ? pair.odd : pair.even;
    } else {
      eps = element<T>(c.noise, r.row, j);
    }
    const R m = element<T>(c.mean, r.row, j), s = clamp(element<T>(c.log_std, r.row, j), low, high);
    const double e = eps, d = sigma_of(s) * e, poison = m * zero + s * zero + eps * zero;
    const double x = finite(static_cast<double>(m) + d, 0.0) + poison;
    const R u = finite(x, zero);
    const Bound b = bound_of<T>(c, j);
    const double scale = b.scale();
    const Squashed<R> q = squash(u);
    log_prob -= log_prob_constant(scale, c.epsilon == 0);
    log_prob += poison + 0.0 * scale;  // log_positive passes no NaN on
    if (c.epsilon == 0)
      log_prob += log_prob_part(e, s) + 2.0 * (magnitude(x) + static_cast<double>(q.log1p_w));
    else
      log_prob += log_prob_part(e, s) - log_positive(scale * static_cast<double>(q.slope) + c.epsilon);
    if (!r.here) return;
    put<T>(c.out_action, i, clamp(b.bias() + scale * static_cast<double>(q.t), b.low, b.high));
    if (!c.u) return;
    static_cast<R*>(c.u)[i] = u;
    static_cast<R*>(c.scaled_noise)[i] = finite(d, zero);
  });
  log_prob = sum_of(log_prob, lanes);
  if (r.here && r.lane == 0) put<T>(c.log_prob, r.row, log_prob);
}

template <class T>
__device__ Unsquashed unsquash_at(const CudaTanhNormal& c, const Bound& b, double log_std, int64_t row, int64_t j) {
  return unsquash(element<T>(c.mean, row, j), log_std, element<T>(c.action, row, j), b.low, b.high,
                  next_number<T>(b.low, b.high), next_number<T>(b.high, b.low));
}

template <class T>
__global__ void log_prob_rows(CudaTanhNormal c, int lanes) {
  const Row r = row_of(lanes, c.rows);
  double log_prob = 0;
  for_columns(c.columns, r.lane, lanes, [&](int64_t j) {
    const Bound b = bound_of<T>(c, j);
    const double s = clamp(element<T>(c.log_std, r.row, j), limit<T>(c.log_std_min), limit<T>(c.log_std_max));
    log_prob += unsquashed_log_prob(unsquash_at<T>(c, b, s, r.row, j), s, c.epsilon);
  });
  log_prob = sum_of(log_prob, lanes);
  if (r.here && r.lane == 0) put<T>(c.log_prob, r.row, log_prob);
}

// f(row, column, bounds) gives the gradient of the clamped log_std.
template <class T, class F>
__device__ void for_piece(const CudaTanhNormal& c, F f) {
  const int64_t piece_rows = c.shared ? kCudaPieceRows : 1;
  const int64_t i = thread_index(), piece = i / c.columns, j = i % c.columns, begin = piece * piece_rows;
  if (begin >= c.rows) return;
  const int64_t end = begin + piece_rows < c.rows ? begin + piece_rows : c.rows;
  const Bound b = bound_of<T>(c, j);
  const Real<T> s = element<T>(c.log_std, begin, j);
  double sum = 0;
  for (int64_t row = begin; row < end; ++row) sum += f(row, j, b);
  if (!c.grad_log_std) return;
  if (s < limit<T>(c.log_std_min) || s > limit<T>(c.log_std_max)) sum = 0;
  if (c.shared)
    c.sums[i] = sum;
  else
    put<T>(c.grad_log_std, i, sum);
}

template <class T>
__global__ void sample_grad(CudaTanhNormal c) {
  using R = Real<T>;
  for_piece<T>(c, [&](int64_t row, int64_t j, const Bound& b) {
    const int64_t i = row * c.columns + j;
    const R ga = c.grad_action.data ? element<T>(c.grad_action, row, j) : R(0);
    const R gl = c.grad_log_prob.data ? item<T>(c.grad_log_prob.data, row * c.grad_log_prob.stride) : R(0);
    const R g = squash_grad(squash(static_cast<const R*>(c.u)[i]), static_cast<R>(b.scale()), static_cast<R>(c.epsilon),
                            ga, gl);
    if (c.grad_mean) put<T>(c.grad_mean, i, g);
    return static_cast<double>(g * static_cast<const R*>(c.scaled_noise)[i] - gl);
  });
}

template <class T>
__global__ void log_prob_grad(CudaTanhNormal c) {
  for_piece<T>(c, [&](int64_t row, int64_t j, const Bound& b) {
    const int64_t i = row * c.columns + j;
    const double s = clamp(element<T>(c.log_std, row, j), limit<T>(c.log_std_min), limit<T>(c.log_std_max));
    const double gl = item<T>(c.grad_log_prob.data, row * c.grad_log_prob.stride);
    const Unsquashed x = unsquash_at<T>(c, b, s, row, j);
    const double largest = largest_number<T>();
    if (c.grad_mean) put<T>(c.grad_mean, i, bounded_grad(gl, x.z * x.inverse_sigma, largest));
    if (c.grad_action_out) put<T>(c.grad_action_out, i, bounded_grad(gl, unsquashed_grad(x, c.epsilon), largest));
    return bounded_grad(gl, x.z * x.z - 1.0, largest);
  });
}

template <class T>
__global__ void mode(CudaTanhNormal c) {
  using R = Real<T>;
  const int64_t i = thread_index();
  if (i >= c.rows * c.columns) return;
  const int64_t row = i / c.columns, j = i % c.columns;
  const Bound b = bound_of<T>(c, j);
  const R u = element<T>(c.mean, row, j);
  const Squashed<R> q = squash(u + u * R(0));
  if (c.grad_action.data)
    put<T>(c.grad_mean, i, element<T>(c.grad_action, row, j) * (static_cast<R>(b.scale()) * q.slope));
  else
    put<T>(c.out_action, i, clamp(b.bias() + b.scale() * static_cast<double>(q.t), b.low, b.high));
}

}  // namespace tanh_normal_cuda

cudaError_t cuda_tanh_normal_sample(const CudaTanhNormal& c, cudaStream_t stream) {
  return launch_rows(c, c.rows, c.columns, stream, FASTRL_KERNEL(sample), kColumns);
}

cudaError_t cuda_tanh_normal_sample_grad(const CudaTanhNormal& c, cudaStream_t stream) {
  return launch_pieces(c, stream, FASTRL_KERNEL(sample_grad));
}

cudaError_t cuda_tanh_normal_log_prob(const CudaTanhNormal& c, cudaStream_t stream) {
  return launch_rows(c, c.rows, c.columns, stream, FASTRL_KERNEL(log_prob_rows), kColumns);
}

cudaError_t cuda_tanh_normal_log_prob_grad(const CudaTanhNormal& c, cudaStream_t stream) {
  return launch_pieces(c, stream, FASTRL_KERNEL(log_prob_grad));
}

cudaError_t cuda_tanh_normal_mode(const CudaTanhNormal& c, cudaStream_t stream) {
  return typed(c.dtype, [&](auto t) { launch(mode<decltype(t)>, c.rows * c.columns, stream, c); });
}

}  // namespace fastrl
