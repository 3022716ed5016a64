// The policy heads and n_step_gather on a GPU: what their CUDA kernels (heads.cu, n_step_gather.cu) and bindings share.
// None waits for the device, allocates, or reads anything back: all can be captured in a CUDA graph. So values are not
// checked: what has no result (an action outside [0, K), a row without a distribution) is NaN.
#pragma once

#include "categorical/categorical.h"
#include "core/cuda_arrays.h"
#include "normal/normal.h"

namespace fastrl {

// A gradient [B], `stride` bytes apart; data null: 0.
struct RowNumbers {
  const char* data = nullptr;
  int64_t stride = 0;
};

// All arrays in device memory; results contiguous, in the dtype of the first array.
struct CudaCategorical {
  CudaFloat dtype;
  Logits logits;
  CudaIndices action;                      // log_prob_entropy, grad
  RowNumbers grad_log_prob, grad_entropy;  // grad
  uint64_t* state;                         // sample: {seed, counter} of the generator, advanced by the rows; or null,
  const char* uniform;                     // and these float64 numbers [rows] instead, `uniform_stride` bytes apart
  int64_t uniform_stride;
  int64_t* drawn;
  void *log_prob, *entropy, *grad_logits;
};

// Row b takes the uniform of block counter + b. A row without a valid distribution has action -1 and log_prob NaN.
cudaError_t cuda_categorical_sample(const CudaCategorical& call, cudaStream_t stream);
cudaError_t cuda_categorical_log_prob_entropy(const CudaCategorical& call, cudaStream_t stream);
cudaError_t cuda_categorical_grad(const CudaCategorical& call, cudaStream_t stream);

// The gradient of a log_std of shape [columns] is summed over pieces of so many rows first, in a fixed order.
constexpr int64_t kCudaPieceRows = 32;
inline int64_t cuda_pieces(int64_t rows) { return (rows + kCudaPieceRows - 1) / kCudaPieceRows; }

struct CudaNormal {
  CudaFloat dtype;
  int64_t rows, columns;
  Columns mean, log_std, action, noise;  // log_std of shape [columns]: row stride 0
  Columns grad_action;
  RowNumbers grad_log_prob, grad_entropy;
  uint64_t* state;  // sample: as NormalSample, advanced by normal_blocks(rows columns); null: `noise` instead
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
