// How the CUDA kernels see what a call gives them in device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/common.h"

namespace fastrl {

enum class CudaFloat : uint8_t { f32, f64, f16, bf16 };

// n numbers in device memory, `stride` bytes apart; data null: all are `scalar`.
template <class Wide, class Narrow>
struct CudaNumbers {
  const char* data;
  int64_t stride;
  bool narrow;
  Wide scalar;

#if defined(__CUDACC__)
  __device__ Wide operator[](int64_t i) const {
    if (!data) return scalar;
    const char* at = data + i * stride;
    return narrow ? static_cast<Wide>(*reinterpret_cast<const Narrow*>(at)) : *reinterpret_cast<const Wide*>(at);
  }
#endif
};
using CudaIndices = CudaNumbers<int64_t, int32_t>;
using CudaFloats = CudaNumbers<double, float>;

}  // namespace fastrl
