// The maths is that of categorical.h.
#include <cmath>

#include "categorical/cuda.h"
#include "heads/rows.cuh"

namespace fastrl {
inline namespace categorical_cuda {

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
  const uint64_t counter = c.state ? take_blocks(c.state, c.logits.rows) : 0;
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
  const double u = c.state ? uniform(philox(c.state[0], counter + static_cast<uint64_t>(r.row)))
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

}  // namespace categorical_cuda

cudaError_t cuda_categorical_sample(const CudaCategorical& c, cudaStream_t stream) {
  return launch_rows(c, c.logits.rows, c.logits.actions, stream, FASTRL_KERNEL(categorical_sample));
}

cudaError_t cuda_categorical_log_prob_entropy(const CudaCategorical& c, cudaStream_t stream) {
  return launch_rows(c, c.logits.rows, c.logits.actions, stream, FASTRL_KERNEL(categorical_log_prob_entropy));
}

cudaError_t cuda_categorical_grad(const CudaCategorical& c, cudaStream_t stream) {
  return launch_rows(c, c.logits.rows, c.logits.actions, stream, FASTRL_KERNEL(categorical_gradients));
}

}  // namespace fastrl
