// Conjugate gradient on a GPU: what its CUDA kernels (conjugate_gradient.cu) and bindings share. The numbers of a solve
// stay in device memory, in `state`; once its status is not `running`, the kernels do nothing. None waits for the
// device, allocates, or reads anything back: all can be captured in a CUDA graph.
#pragma once

#include "conjugate_gradient/conjugate_gradient.h"
#include "core/cuda_arrays.h"

namespace fastrl {

// The places in `state`, as in fastrl/kernels/conjugate_gradient.
enum CgState { kCgStatus, kCgIterations, kCgRr, kCgRz, kCgTarget, kCgAlpha, kCgBeta, kCgGood, kCgStateSize };

// Partial sums of at most so many blocks, three each, and the count of blocks that are done.
constexpr int64_t kCgBlocks = 512;
constexpr int64_t kCgScratchSize = 3 * kCgBlocks + 1;

// A vector of the caller's, `stride` bytes apart; data null: there is none.
struct CgVector {
  const char* data = nullptr;
  int64_t stride = 0;
};

struct CudaCg {
  bool float64;
  int64_t n;
  CgVector b, z, inverse, y;
  void *x, *r, *p;  // contiguous
  double damping, rtol, atol;
  double *state, *scratch;  // scratch is zero between calls where it counts
  bool fused, first;
};

cudaError_t cuda_cg_start(const CudaCg& call, cudaStream_t stream);      // b, x, z, inverse -> r, p, x
cudaError_t cuda_cg_step(const CudaCg& call, cudaStream_t stream);       // x, r, p, z, inverse -> x, r, p
cudaError_t cuda_cg_direction(const CudaCg& call, cudaStream_t stream);  // y, r, p -> p

}  // namespace fastrl
