// The categorical head on a GPU.
#pragma once

#include "categorical/categorical.h"
#include "heads/cuda.h"

namespace fastrl {

// All arrays in device memory; results contiguous, in the dtype of the first array.
struct CudaCategorical {
  CudaFloat dtype;
  Logits logits;
  CudaIndices action;                      // log_prob_entropy, grad
  RowNumbers grad_log_prob, grad_entropy;  // grad
  uint64_t* state;                         // sample: the generator's (take_blocks), advanced by the rows; or null,
  const char* uniform;                     // and these float64 numbers [rows] instead, `uniform_stride` bytes apart
  int64_t uniform_stride;
  int64_t* drawn;
  void *log_prob, *entropy, *grad_logits;
};

// Row b takes the uniform of block counter + b. A row without a valid distribution has action -1 and log_prob NaN.
cudaError_t cuda_categorical_sample(const CudaCategorical& call, cudaStream_t stream);
cudaError_t cuda_categorical_log_prob_entropy(const CudaCategorical& call, cudaStream_t stream);
cudaError_t cuda_categorical_grad(const CudaCategorical& call, cudaStream_t stream);

}  // namespace fastrl
