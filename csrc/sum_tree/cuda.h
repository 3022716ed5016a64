// The sum tree in GPU memory: what its CUDA kernels (sum_tree.cu) and their binding share.
#pragma once

#include "core/cuda_arrays.h"
#include "sum_tree/sum_tree.h"

namespace fastrl {

constexpr int kMaxCudaLevels = 9;  // 16^8 > 2^31 leaves

// Device memory, except for the numbers. Level 0 are the leaves; the nodes of level l >= 1 begin at start[l] of `sums`,
// `mins` and `maxs`. The padding up to whole groups of 16 siblings is 0 (inf in `mins`).
struct CudaTree {
  bool float64;  // the leaf type
  int64_t capacity;
  int top;                        // the level of the root
  int64_t start[kMaxCudaLevels];  // [0] unused
  int64_t nodes[kMaxCudaLevels];  // without the padding; [0] unused
  void* leaves;
  double* sums;
  void *mins, *maxs;   // in the leaf type
  int32_t* winner;     // a leaf: which item of a batch is written to it; -1 between calls
  uint64_t* flag;      // position << 4 | CudaFlag of the first bad item since it was last read; all ones: none
  uint64_t* smallest;  // bits of the smallest priority of a batch; all ones between calls
  uint64_t* state;     // {seed, counter} of the generator
};

// What a call could not raise without waiting for the device; fastrl/kernels/sum_tree/_cuda.py has the texts.
enum CudaFlag {
  kUpdateIndex,
  kUpdatePriority,
  kUpdatePriorityTooLarge,
  kTdIndex,
  kTdError,
  kGetIndex,
  kFindValue,
  kFindEmpty,
  kSampleEmpty,
  kSampleTooFew,
  kWeightedEmpty,
};

struct CudaUpdate {
  int64_t n;
  CudaIndices indices;
  CudaFloats values;  // priorities, or TD errors
  bool from_td = false, keep_zeros = false;
  double alpha = 0, eps = 0;
  double* largest = nullptr;  // device memory; where given it receives the largest priority written
};

// None of these waits for the device, allocates, or reads anything back: all can be captured in a CUDA graph.
cudaError_t cuda_update(const CudaTree& tree, const CudaUpdate& items, cudaStream_t stream);
cudaError_t cuda_get(const CudaTree& tree, const CudaIndices& indices, int64_t n, void* out, cudaStream_t stream);
cudaError_t cuda_find(const CudaTree& tree, const CudaFloats& u, int64_t n, int64_t* out, cudaStream_t stream);
cudaError_t cuda_sample(const CudaTree& tree, bool stratified, int64_t n, int64_t* indices, double* probabilities,
                        cudaStream_t stream);
cudaError_t cuda_sample_distinct(const CudaTree& tree, int64_t n, int64_t* indices, double* probabilities,
                                 cudaStream_t stream);
cudaError_t cuda_sample_weighted(const CudaTree& tree, bool stratified, double beta, bool whole_tree, int64_t n,
                                 int64_t* indices, void* weights, cudaStream_t stream);

}  // namespace fastrl
