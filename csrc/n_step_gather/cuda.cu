#include "core/cuda_floats.h"
#include "core/simd_math.h"
#include "n_step_gather/cuda.h"

namespace fastrl {

template <>
FASTRL_HD inline double load_float<__half>(const char* p) {
  return static_cast<double>(__half2float(*reinterpret_cast<const __half*>(p)));
}
template <>
FASTRL_HD inline double load_float<__nv_bfloat16>(const char* p) {
  return static_cast<double>(__bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(p)));
}

inline namespace n_step_gather_cuda {

constexpr int kThreads = 128;

// A thread an item.
template <class T>
__global__ void gather(CudaNStepBatch b) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= b.size) return;
  const int64_t index = b.indices[i];
  NStepItem item;
  item.returns = item.discount = kNaN;
  item.last = -1;
  if (index >= 0 && index < b.ring.slots * b.ring.envs) {
    const int64_t slot = index / b.ring.envs, env = index % b.ring.envs;
    const int64_t cursor = b.cursor[env], size = b.sizes[env];
    const bool inside = cursor >= 0 && cursor < b.ring.slots && size >= 0 && size <= b.ring.slots;
    const int64_t steps = steps_to_newest(slot, cursor, b.ring.slots);
    if (inside && steps <= size) {
      item = n_step_item<T>(b.ring, slot, env, steps < b.n ? steps : b.n);
      item.last = item.last * b.ring.envs + env;
    }
  }
  *reinterpret_cast<T*>(b.returns + i * b.returns_stride) = from_real<T>(item.returns);
  *reinterpret_cast<T*>(b.discounts + i * b.discounts_stride) = from_real<T>(item.discount);
  *reinterpret_cast<int64_t*>(b.last + i * b.last_stride) = item.last;
}

}  // namespace n_step_gather_cuda

cudaError_t cuda_n_step_gather(const CudaNStepBatch& b, cudaStream_t stream) {
  if (b.size == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((b.size + kThreads - 1) / kThreads);
  return typed(b.dtype, [&](auto number) {
    using T = decltype(number);
    gather<T><<<blocks, kThreads, 0, stream>>>(b);
  });
}

}  // namespace fastrl
