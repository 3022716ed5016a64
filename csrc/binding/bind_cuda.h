// What the bindings of the CUDA kernels share.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>

#include "binding/bind.h"
#include "core/cuda_arrays.h"

namespace fastrl {

inline std::string device_name(DLDevice device) { return "cuda:" + std::to_string(device.device_id); }

// One call's launches on torch's current stream of the device, without another thread's among them; the GIL is let go.
void launch_on(const DLPackExchangeAPI* api, DLDevice device, const char* op,
               const std::function<cudaError_t(cudaStream_t)>& launches);

// An argument on the device of `first`, which is called `name`; null: it is the first one. Nothing is copied to a
// device, or from one. `allowed`: none for any dtype.
Array load_cuda(py::handle x, const char* where, const Array* first, const char* name,
                std::initializer_list<DType> allowed);

inline CudaFloat cuda_float(DType t) {
  return t == DType::f64    ? CudaFloat::f64
         : t == DType::f16  ? CudaFloat::f16
         : t == DType::bf16 ? CudaFloat::bf16
                            : CudaFloat::f32;
}

}  // namespace fastrl
