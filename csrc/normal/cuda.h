// The diagonal normal head on a GPU.
#pragma once

#include "heads/cuda.h"
#include "normal/normal.h"

namespace fastrl {

// All arrays in device memory; results contiguous, in the dtype of the first array.
struct CudaNormal {
  CudaFloat dtype;
  int64_t rows, columns;
  Columns mean, log_std, action, noise;  // log_std of shape [columns]: row stride 0
  Columns grad_action;
  RowNumbers grad_log_prob, grad_entropy;
  uint64_t* state;  // sample: the generator's (take_blocks), of four numbers a block; null: `noise` instead
  void *out_action, *log_prob, *entropy, *noise_out;
  void *grad_mean, *grad_log_std, *grad_action_out;
  bool shared;   // log_std is [columns]
  double* sums;  // shared: [cuda_pieces(rows), columns] for the gradient of log_std
};

// Null results are not wanted.
cudaError_t cuda_normal_sample(const CudaNormal& call, cudaStream_t stream);
cudaError_t cuda_normal_sample_grad(const CudaNormal& call, cudaStream_t stream);
cudaError_t cuda_normal_log_prob_entropy(const CudaNormal& call, cudaStream_t stream);
cudaError_t cuda_normal_grad(const CudaNormal& call, cudaStream_t stream);

}  // namespace fastrl
