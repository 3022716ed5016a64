// Conjugate gradient on a GPU. A sum is made of one partial sum a block, which the block that finishes last adds up in
// a fixed order; it then decides what the next kernel does.
#include <cmath>

#include "conjugate_gradient/cuda.h"

namespace fastrl {
inline namespace conjugate_gradient_cuda {

constexpr int kWarp = 32, kThreads = 256;
constexpr int64_t kItems = 4;  // of a thread, at least

int blocks_of(int64_t n) {
  const int64_t blocks = (n + kThreads * kItems - 1) / (kThreads * kItems);
  return static_cast<int>(blocks < 1 ? 1 : blocks > kCgBlocks ? kCgBlocks : blocks);
}

__device__ bool running(const double* state) { return state[kCgStatus] == static_cast<double>(CgStatus::running); }
__device__ void finish(double* state, CgStatus status) { state[kCgStatus] = static_cast<double>(status); }

template <class T>
__device__ double item(const CgVector& v, int64_t i) {
  return static_cast<double>(*reinterpret_cast<const T*>(v.data + i * v.stride));
}

template <class F>
__device__ void each(int64_t n, F f) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) f(i);
}

// The sum over the block, in thread 0; in a fixed order.
__device__ double block_sum(double x) {
  __shared__ double of_warps[kThreads / kWarp];
  for (int h = 1; h < kWarp; h *= 2) x += __shfl_down_sync(0xFFFFFFFF, x, h);
  __syncthreads();  // a sum before may still be read
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < kThreads / kWarp; ++w) x += of_warps[w];
  return x;
}

// Adds the three sums of all blocks up: true in thread 0 of the last block alone, which then has the totals.
__device__ bool totals(double (&sums)[3], double* scratch) {
  for (double& s : sums) s = block_sum(s);
  __shared__ bool last;
  auto* done = reinterpret_cast<unsigned*>(scratch + 3 * kCgBlocks);
  if (threadIdx.x == 0) {
    for (int k = 0; k < 3; ++k) scratch[3 * blockIdx.x + k] = sums[k];
    __threadfence();
    last = atomicAdd(done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return false;
  __threadfence();
  for (int k = 0; k < 3; ++k) {
    double s = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) s += __ldcg(scratch + 3 * i + k);
    sums[k] = block_sum(s);
  }
  if (threadIdx.x != 0) return false;
  *done = 0;
  return true;
}

template <class T>
__global__ void __launch_bounds__(kThreads) start(CudaCg c) {
  double sums[3] = {};
  T *r = static_cast<T*>(c.r), *p = static_cast<T*>(c.p);
  const T* x = static_cast<const T*>(c.x);
  each(c.n, [&](int64_t i) {
    const double b = item<T>(c.b, i);
    const double z = c.z.data ? item<T>(c.z, i) + c.damping * static_cast<double>(x[i]) : 0.0;
    r[i] = static_cast<T>(b - z);
    const double residual = static_cast<double>(r[i]);
    p[i] = c.inverse.data ? static_cast<T>(residual * item<T>(c.inverse, i)) : r[i];
    sums[0] += b * b;
    sums[1] += residual * residual;
    sums[2] += residual * static_cast<double>(p[i]);
  });
  if (!totals(sums, c.scratch)) return;
  double* state = c.state;
  const double target = fmax(c.rtol * sqrt(sums[0]), c.atol);
  const bool zero = sums[0] == 0, finite = zero || (isfinite(sums[0]) && isfinite(sums[1]));
  finish(state, !finite                              ? CgStatus::breakdown
                : zero || sums[1] <= target * target ? CgStatus::converged
                                                     : CgStatus::running);
  state[kCgIterations] = 0;
  state[kCgRr] = zero ? 0.0 : sums[1];
  state[kCgRz] = sums[2];
  state[kCgTarget] = target * target;
  state[kCgGood] = zero;  // for clean_start
}

// Where b = 0, or x0 is not finite, x is 0.
template <class T>
__global__ void __launch_bounds__(kThreads) clean_start(CudaCg c) {
  T* x = static_cast<T*>(c.x);
  const bool zero = c.state[kCgGood] != 0;
  each(c.n, [&](int64_t i) {
    if (zero || !isfinite(static_cast<double>(x[i]))) x[i] = T(0);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) curvature(CudaCg c) {
  double* state = c.state;
  if (!running(state)) return;
  double sums[3] = {};
  const T* p = static_cast<const T*>(c.p);
  each(c.n, [&](int64_t i) {
    const double direction = static_cast<double>(p[i]);
    sums[0] += direction * (item<T>(c.z, i) + c.damping * direction);
  });
  if (!totals(sums, c.scratch)) return;
  const double rz = state[kCgRz];
  if (!(rz > 0) || !isfinite(rz) || !isfinite(sums[0]))
    finish(state, CgStatus::breakdown);
  else if (sums[0] <= 0)
    finish(state, CgStatus::negative_curvature);
  else
    state[kCgAlpha] = rz / sums[0];
}

// Item i of the next x and r.
template <class T>
struct Next {
  T x, r;
  __device__ Next(const CudaCg& c, double alpha, int64_t i) {
    const double p = static_cast<double>(static_cast<const T*>(c.p)[i]);
    x = static_cast<T>(static_cast<double>(static_cast<const T*>(c.x)[i]) + alpha * p);
    r = static_cast<T>(static_cast<double>(static_cast<const T*>(c.r)[i]) - alpha * (item<T>(c.z, i) + c.damping * p));
  }
};

// What the next x and r are like. They are written by `advance`, once it is known that they are good.
template <class T>
__global__ void __launch_bounds__(kThreads) update(CudaCg c) {
  double* state = c.state;
  if (!running(state)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) state[kCgGood] = 0;  // which nobody here reads
    return;
  }
  double sums[3] = {};
  const double alpha = state[kCgAlpha];
  each(c.n, [&](int64_t i) {
    const Next<T> next(c, alpha, i);
    const double residual = static_cast<double>(next.r);
    sums[0] += residual * residual;
    sums[1] += residual * (c.inverse.data ? residual * item<T>(c.inverse, i) : residual);
    const double x_new = static_cast<double>(next.x);
    sums[2] += x_new - x_new;  // NaN for an infinite one
  });
  if (!totals(sums, c.scratch)) return;
  const bool good = isfinite(sums[0]) && sums[2] == 0;
  state[kCgGood] = good;
  if (!good) return finish(state, CgStatus::breakdown);
  state[kCgIterations] += 1;
  state[kCgRr] = sums[0];
  if (sums[0] <= state[kCgTarget]) return finish(state, CgStatus::converged);
  if (!c.fused) return;
  state[kCgBeta] = sums[1] / state[kCgRz];
  state[kCgRz] = sums[1];
}

template <class T>
__global__ void __launch_bounds__(kThreads) advance(CudaCg c) {
  const double* state = c.state;
  if (state[kCgGood] == 0) return;
  const bool further = c.fused && running(state);
  const double alpha = state[kCgAlpha], beta = state[kCgBeta];
  T *x = static_cast<T*>(c.x), *r = static_cast<T*>(c.r), *p = static_cast<T*>(c.p);
  each(c.n, [&](int64_t i) {
    const Next<T> next(c, alpha, i);
    x[i] = next.x;
    r[i] = next.r;
    if (!further) return;
    const double residual = static_cast<double>(next.r);
    const double y = c.inverse.data ? residual * item<T>(c.inverse, i) : residual;
    p[i] = static_cast<T>(y + beta * static_cast<double>(p[i]));
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) preconditioned_dot(CudaCg c) {
  double* state = c.state;
  if (!running(state)) return;
  double sums[3] = {};
  const T* r = static_cast<const T*>(c.r);
  each(c.n, [&](int64_t i) { sums[0] += static_cast<double>(r[i]) * item<T>(c.y, i); });
  if (!totals(sums, c.scratch)) return;
  state[kCgBeta] = sums[0] / state[kCgRz];
  state[kCgRz] = sums[0];
}

template <class T>
__global__ void __launch_bounds__(kThreads) preconditioned_direction(CudaCg c) {
  if (!running(c.state)) return;
  const double beta = c.state[kCgBeta];
  T* p = static_cast<T*>(c.p);
  each(c.n, [&](int64_t i) {
    const double y = item<T>(c.y, i);
    p[i] = static_cast<T>(c.first ? y : y + beta * static_cast<double>(p[i]));
  });
}

using Kernel = void (*)(CudaCg);

cudaError_t launch(Kernel of_float, Kernel of_double, const CudaCg& c, cudaStream_t stream) {
  (c.float64 ? of_double : of_float)<<<blocks_of(c.n), kThreads, 0, stream>>>(c);
  return cudaGetLastError();
}

}  // namespace conjugate_gradient_cuda

cudaError_t cuda_cg_start(const CudaCg& c, cudaStream_t stream) {
  const cudaError_t status = launch(start<float>, start<double>, c, stream);
  if (status != cudaSuccess || !c.z.data) return status;
  return launch(clean_start<float>, clean_start<double>, c, stream);
}

cudaError_t cuda_cg_step(const CudaCg& c, cudaStream_t stream) {
  cudaError_t status = launch(curvature<float>, curvature<double>, c, stream);
  if (status == cudaSuccess) status = launch(update<float>, update<double>, c, stream);
  if (status == cudaSuccess) status = launch(advance<float>, advance<double>, c, stream);
  return status;
}

cudaError_t cuda_cg_direction(const CudaCg& c, cudaStream_t stream) {
  const cudaError_t status = launch(preconditioned_dot<float>, preconditioned_dot<double>, c, stream);
  if (status != cudaSuccess) return status;
  return launch(preconditioned_direction<float>, preconditioned_direction<double>, c, stream);
}

}  // namespace fastrl
