// cub's sum over a block, for the emulation: with its shared memory and its one barrier, and none before or after.
#pragma once

#include "cuda_runtime_api.h"

namespace cub {

template <class T, int kThreads>
class BlockReduce {
 public:
  struct TempStorage {
    T values[kThreads];
  };
  explicit BlockReduce(TempStorage& storage) : storage_(storage) {}

  // The sum, in thread 0; elsewhere NaN, since cub leaves it undefined.
  T Sum(T x) {
    storage_.values[threadIdx.x] = x;
    __syncthreads();
    if (threadIdx.x != 0) return static_cast<T>(NAN);
    T sum = 0;
    for (int i = 0; i < kThreads; ++i) sum += storage_.values[i];
    return sum;
  }

 private:
  TempStorage& storage_;
};

}  // namespace cub
