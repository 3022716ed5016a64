// What the kernels of the policy heads share: a few neighbouring lanes of a warp share a row, or a thread goes down a
// column of a piece of rows. The warp functions name all 32 lanes: whole warps call them, and what has no row writes
// nothing.
#pragma once

#include "core/cuda_floats.h"
#include "heads/cuda.h"

namespace fastrl {
inline namespace head_rows {

constexpr unsigned kAllLanes = 0xFFFFFFFF;
constexpr int kWarp = 32;
constexpr int kThreads = 128;

__device__ inline int64_t thread_index() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

template <class T>
__device__ Real<T> item(const char* data, int64_t offset) {
  return to_real(*reinterpret_cast<const T*>(data + offset));
}

template <class T>
__device__ void put(void* out, int64_t i, double x) {
  static_cast<T*>(out)[i] = from_real<T>(x);
}

template <class T>
__device__ double row_number(const RowNumbers& g, int64_t row) {
  return g.data ? static_cast<double>(item<T>(g.data, row * g.stride)) : 0.0;
}

// ---------------------------------------------------------------- the lanes of a row
template <class T>
__device__ T sum_of(T x, int lanes) {
  for (int h = 1; h < lanes; h *= 2) x += __shfl_xor_sync(kAllLanes, x, h, lanes);
  return x;
}

// A NaN never is the largest.
template <class T>
__device__ T largest_of(T x, int lanes) {
  for (int h = 1; h < lanes; h *= 2) {
    const T other = __shfl_xor_sync(kAllLanes, x, h, lanes);
    x = other > x ? other : x;
  }
  return x;
}

// `before` plus the x of the lanes up to this one, added one after the other: the CPU's order. So it grows with the
// lane, and not where x is 0; a tree of sums does neither.
__device__ inline double running_sum(double before, double x, int lane, int lanes) {
  double sum = before, mine = before;
  for (int i = 0; i < lanes; ++i) {
    sum += __shfl_sync(kAllLanes, x, i, lanes);
    if (i == lane) mine = sum;
  }
  return mine;
}

struct Row {
  int lane, lanes;
  int64_t row;
  bool here;  // else the last row is worked on again, and nothing written
};

__device__ inline Row row_of(int lanes, int64_t rows) {
  const int64_t i = thread_index(), row = i / lanes;
  return {static_cast<int>(i % lanes), lanes, row < rows ? row : rows - 1, row < rows};
}

// The counter of the call's first block; {seed, counter, 0} is advanced by n. Every thread of the grid calls it, once:
// the last block to have read the counter writes it, and state[2] counts the blocks.
__device__ inline uint64_t take_blocks(uint64_t* state, int64_t n) {
  const uint64_t counter = state[1];
  __syncthreads();  // the block has read it
  if (threadIdx.x > 0) return counter;
  if (gridDim.x > 1) {
    __threadfence();
    if (atomicAdd(reinterpret_cast<unsigned long long*>(state + 2), 1ULL) + 1 < gridDim.x) return counter;
    __threadfence();
    state[2] = 0;
  }
  state[1] = counter + static_cast<uint64_t>(n);
  return counter;
}

template <class T>
__device__ Real<T> element(const Columns& a, int64_t row, int64_t column) {
  return item<T>(a.data, row * a.row_stride + column * a.column_stride);
}

// A warp a column: the sum over the pieces.
template <class T, class Call>
__global__ void add_pieces(Call c, int64_t pieces) {
  const int64_t j = thread_index() / kWarp;
  double sum = 0;
  if (j < c.columns)
    for (int64_t p = static_cast<int>(threadIdx.x) % kWarp; p < pieces; p += kWarp) sum += c.sums[p * c.columns + j];
  sum = sum_of(sum, kWarp);
  if (j < c.columns && threadIdx.x % kWarp == 0) put<T>(c.grad_log_std, j, sum);
}

// ---------------------------------------------------------------- launches
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t threads, cudaStream_t stream, A... arguments) {
  if (threads == 0) return;
  kernel<<<static_cast<unsigned>((threads + kThreads - 1) / kThreads), kThreads, 0, stream>>>(arguments...);
}

// How many lanes share a row: a power of two, so many numbers a lane.
inline int lanes_for(int64_t numbers, int a_lane = 1) {
  int lanes = 1;
  while (lanes < kWarp && lanes * a_lane < numbers) lanes *= 2;
  return lanes;
}

// `kernel_of` a number of a dtype is the kernel for it.
template <class Call, class F>
cudaError_t launch_rows(const Call& call, int64_t rows, int64_t columns, cudaStream_t stream, F kernel_of,
                        int a_lane = 1) {
  const int lanes = lanes_for(columns, a_lane);
  return typed(call.dtype, [&](auto number) { launch(kernel_of(number), rows * lanes, stream, call, lanes); });
}

template <class Call, class F>
cudaError_t launch_pieces(const Call& call, cudaStream_t stream, F kernel_of) {
  const int64_t pieces = call.shared ? cuda_pieces(call.rows) : call.rows;
  return typed(call.dtype, [&](auto number) {
    launch(kernel_of(number), pieces * call.columns, stream, call);
    if (call.shared && call.grad_log_std)
      launch(add_pieces<decltype(number), Call>, call.columns * kWarp, stream, call, pieces);
  });
}

#define FASTRL_KERNEL(name) [](auto number) { return &name<decltype(number)>; }

}  // namespace head_rows
}  // namespace fastrl
