// The dtypes of CUDA arrays inside the kernels: float16 and bfloat16 are worked on as float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "core/cuda_arrays.h"

namespace fastrl {

template <class T>
using Real = std::conditional_t<std::is_same<T, double>::value, double, float>;

__device__ inline double to_real(double x) { return x; }
__device__ inline float to_real(float x) { return x; }
__device__ inline float to_real(__half x) { return __half2float(x); }
__device__ inline float to_real(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T, class X>
__device__ T from_real(X x) {
  if constexpr (std::is_same<T, __half>::value)
    return __float2half_rn(static_cast<float>(x));
  else if constexpr (std::is_same<T, __nv_bfloat16>::value)
    return __float2bfloat16_rn(static_cast<float>(x));
  else
    return static_cast<T>(x);
}

// f with a number of the dtype.
template <class F>
cudaError_t typed(CudaFloat dtype, F f) {
  switch (dtype) {
    case CudaFloat::f32:
      f(float());
      break;
    case CudaFloat::f64:
      f(double());
      break;
    case CudaFloat::f16:
      f(__half());
      break;
    case CudaFloat::bf16:
      f(__nv_bfloat16());
      break;
  }
  return cudaGetLastError();
}

}  // namespace fastrl
