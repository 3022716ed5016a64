// The maths is that of normal.h.
#include <cmath>

#include "heads/rows.cuh"
#include "normal/cuda.h"

namespace fastrl {
inline namespace normal_cuda {

// In float64.
template <class T>
__device__ double number(const Columns& a, int64_t row, int64_t column) {
  return static_cast<double>(element<T>(a, row, column));
}

template <class T>
__global__ void normal_log_prob_entropy(CudaNormal c, int lanes) {
  const Row r = row_of(lanes, c.rows);
  double log_prob = 0, entropy = 0;
  for (int64_t j = r.lane; j < c.columns; j += lanes) {
    const double s = number<T>(c.log_std, r.row, j);
    const double z = standardize(number<T>(c.action, r.row, j), number<T>(c.mean, r.row, j), exp_bounded(-s)).z;
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
  const uint64_t counter = c.state ? take_blocks(c.state, normal_blocks(c.rows * c.columns)) : 0;
  double log_prob = 0;
  for (int64_t j = r.lane; j < c.columns; j += lanes) {
    const int64_t i = r.row * c.columns + j;
    double eps;
    if (!c.state) {
      eps = number<T>(c.noise, r.row, j);
    } else {
      const Philox4 block = philox(c.state[0], counter + static_cast<uint64_t>(i / 4));
      const NormalPair<double> pair =
          i % 4 < 2 ? normal_pair(block.word[0], block.word[1], 0.0) : normal_pair(block.word[2], block.word[3], 0.0);
      eps = i % 2 ? pair.odd : pair.even;
    }
    const double s = number<T>(c.log_std, r.row, j);
    log_prob += normal_log_density(eps, s);
    if (!r.here) continue;
    put<T>(c.out_action, i, number<T>(c.mean, r.row, j) + exp_bounded(s) * eps);
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
  const double s = number<T>(c.log_std, begin, j), e = exp_bounded(sign * s);
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
    const Standardized x = standardize(number<T>(c.action, row, j), number<T>(c.mean, row, j), inverse);
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
    const double ga = c.grad_action.data ? number<T>(c.grad_action, row, j) : 0.0;
    return ga * sigma * number<T>(c.noise, row, j) - row_number<T>(c.grad_log_prob, row);
  });
}

}  // namespace normal_cuda

cudaError_t cuda_normal_sample(const CudaNormal& c, cudaStream_t stream) {
  return launch_rows(c, c.rows, c.columns, stream, FASTRL_KERNEL(normal_sample));
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

}  // namespace fastrl
