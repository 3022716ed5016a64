// n-step returns of items of a ring buffer in GPU memory.
#pragma once

#include "core/cuda_arrays.h"
#include "n_step_gather/n_step_gather.h"

namespace fastrl {

struct CudaNStepBatch {
  NStepRing ring;   // a flag is any byte but 0
  CudaFloat dtype;  // of rewards
  int64_t size;     // of the batch
  CudaIndices indices, cursor, sizes;
  int64_t n;
  // Results, `stride` bytes apart.
  char *returns, *discounts, *last;
  int64_t returns_stride, discounts_stride, last_stride;
};

// An item whose index, cursor or size is out of range, or whose slot holds no item, has returns and discount NaN and
// last -1. Does not wait for the device, allocate, or read anything back.
cudaError_t cuda_n_step_gather(const CudaNStepBatch& batch, cudaStream_t stream);

}  // namespace fastrl
