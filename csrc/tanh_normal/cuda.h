// The tanh-Gaussian head on a GPU: what its CUDA kernels and bindings share. None waits for the device, allocates, or
// reads anything back. So bounds in device memory are not checked: where low < high does not hold, NaN results.
#pragma once

#include "heads/cuda.h"
#include "tanh_normal/tanh_normal.h"

namespace fastrl {

// A bound of the dimensions: numbers in device memory, `stride` bytes apart, or one number.
struct CudaBound {
  const char* data = nullptr;
  int64_t stride = 0;
  double number = 0;
};

// All arrays in device memory; results contiguous, in `dtype`, but `u` and `scaled_noise`: float64 for float64, else
// float32. Null results are not wanted.
struct CudaTanhNormal {
  CudaFloat dtype;
  int64_t rows, columns;
  CudaBound low, high;
  double log_std_min, log_std_max, epsilon;  // epsilon 0: the stable form
  Columns mean, log_std, noise, action;      // log_std of shape [columns]: row stride 0
  Columns grad_action;
  RowNumbers grad_log_prob;
  uint64_t* state;  // sample: the generator's (take_blocks), of four numbers a block; null: `noise` instead
  void *out_action, *log_prob, *u, *scaled_noise;
  void *grad_mean, *grad_log_std, *grad_action_out;
  bool shared;   // log_std is [columns]
  double* sums;  // shared: [cuda_pieces(rows), columns] for the gradient of log_std
};

cudaError_t cuda_tanh_normal_sample(const CudaTanhNormal& call, cudaStream_t stream);
cudaError_t cuda_tanh_normal_sample_grad(const CudaTanhNormal& call, cudaStream_t stream);
cudaError_t cuda_tanh_normal_log_prob(const CudaTanhNormal& call, cudaStream_t stream);
cudaError_t cuda_tanh_normal_log_prob_grad(const CudaTanhNormal& call, cudaStream_t stream);
// With grad_action its gradient into grad_mean, else the action.
cudaError_t cuda_tanh_normal_mode(const CudaTanhNormal& call, cudaStream_t stream);

}  // namespace fastrl
