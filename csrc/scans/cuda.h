// The scans on a GPU: what their CUDA kernels (scans.cu) and their binding share.
#pragma once

#include "core/cuda_arrays.h"
#include "scans/scans.h"

namespace fastrl {

// All arrays are in device memory. Neither waits for the device, allocates, or reads anything back: both can be
// captured in a CUDA graph. A flag is any byte but 0.
template <template <class> class Op>
cudaError_t cuda_scan(const Op<double>& op, CudaFloat dtype, const ScanData& data, cudaStream_t stream);

cudaError_t cuda_n_step_returns(const ScanData& data, CudaFloat dtype, double gamma, int64_t n, cudaStream_t stream);

}  // namespace fastrl
