// The policy heads on a GPU: what their CUDA kernels and bindings share. None waits for the device, allocates, or reads
// anything back: all can be captured in a CUDA graph. So values are not checked: what has no result (an action outside
// [0, K), a row without a distribution) is NaN.
#pragma once

#include "core/cuda_arrays.h"
#include "heads/columns.h"

namespace fastrl {

// A gradient [B], `stride` bytes apart; data null: 0.
struct RowNumbers {
  const char* data = nullptr;
  int64_t stride = 0;
};

// The gradient of a log_std of shape [columns] is summed over pieces of so many rows first, in a fixed order.
constexpr int64_t kCudaPieceRows = 32;
inline int64_t cuda_pieces(int64_t rows) { return (rows + kCudaPieceRows - 1) / kCudaPieceRows; }

}  // namespace fastrl
