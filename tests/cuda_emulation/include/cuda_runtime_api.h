// CUDA for a C++ compiler without a GPU: what the sources under csrc use of it. Kernels run in runtime.cpp.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "binding/dlpack.h"

#define kDLCUDA kDLCPU  // device memory is the host's

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __constant__ static const
#define __launch_bounds__(...)
// One block runs at a time. Without an initialiser it lies in .bss, which runtime.cpp watches.
#define __shared__ static

// ---------------------------------------------------------------- the host's calls
using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
constexpr cudaError_t cudaSuccess = 0;
struct cudaDeviceProp {
  char name[16];
  int major, minor;
  size_t totalGlobalMem;
};
// What cases_errors.py sets: the current device (arrays are on 0), the thread's last error, and which call fails next.
#define EMULATION_FOR_TESTS extern "C" inline __attribute__((visibility("default")))
EMULATION_FOR_TESTS int emulation_device = 0, emulation_last_error = cudaSuccess;
EMULATION_FOR_TESTS char emulation_failing[32] = "";
inline bool emulation_fails(const char* call) {
  if (std::strcmp(emulation_failing, call)) return false;
  emulation_failing[0] = 0;
  emulation_last_error = 2;
  return true;
}
bool emulation_reported();       // whether a kernel did something wrong
const char* emulation_report();  // what; then it is forgotten
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = emulation_reported() ? 1 : emulation_last_error;
  emulation_last_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == 2 ? "a call was to fail" : emulation_report();
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = emulation_device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (emulation_fails("cudaSetDevice")) return emulation_last_error;
  emulation_device = device;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {"emulation", 0, 0, 0};
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t size, cudaStream_t) {
  if (emulation_fails("cudaMemsetAsync")) return emulation_last_error;
  std::memset(p, value, size);
  return cudaSuccess;
}

// ---------------------------------------------------------------- inside a kernel
namespace emulation {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
struct Extent {
  unsigned x = 1, y = 1, z = 1;
  Extent(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

Index thread_index();
Index block_index();
Extent block_extent();
Extent grid_extent();

void run(const char* name, Extent grid, Extent block, const std::function<void()>& thread);

// kernel<<<grid, block, shared, stream>>>(arguments) becomes Launch("kernel", grid, block, ...) << [&] { kernel(...);
// }.
struct Launch {
  const char* name;
  Extent grid, block;
  Launch(const char* name, Extent grid, Extent block, size_t = 0, cudaStream_t = nullptr)
      : name(name), grid(grid), block(block) {}
  template <class F>
  void operator<<(const F& thread) const {
    run(name, grid, block, thread);
  }
};

enum class Meeting : uint8_t { none, block, warp, shuffle };
// Returns how many of the threads of the block say yes.
int barrier(int line, bool yes = false);
void warp_barrier(int line, unsigned mask = 0xFFFFFFFF);
// What the lane `source` gives; own: 64 bits.
uint64_t exchange(int line, unsigned mask, uint64_t own, int source);
// The bit of each lane named in `mask` that says yes.
unsigned ballot(int line, unsigned mask, bool yes);
void fence();
// Before an atomic operation on memory: other threads may go first.
void atomic_begin(const void* p, size_t size);
void fail_width(int line, int width);

template <class T>
T exchange_value(int line, unsigned mask, T x, int source) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "a number");
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  bits = exchange(line, mask, bits, source);
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline int lane() { return static_cast<int>(thread_index().x % 32); }
inline void check_width(int line, int width) {
  if (width < 1 || width > 32 || (width & (width - 1))) fail_width(line, width);
}
template <class T>
T shuffle(int line, unsigned mask, T x, int source, int width = 32) {
  check_width(line, width);
  return exchange_value(line, mask, x, (lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T shuffle_up(int line, unsigned mask, T x, unsigned lanes, int width = 32) {
  check_width(line, width);
  const int from = lane() - static_cast<int>(lanes);
  return exchange_value(line, mask, x, from < (lane() & ~(width - 1)) ? lane() : from);
}
template <class T>
T shuffle_down(int line, unsigned mask, T x, unsigned lanes, int width = 32) {
  check_width(line, width);
  const int from = lane() + static_cast<int>(lanes);
  return exchange_value(line, mask, x, from > (lane() | (width - 1)) ? lane() : from);
}
template <class T>
T shuffle_xor(int line, unsigned mask, T x, int bits, int width = 32) {
  check_width(line, width);
  const int from = lane() ^ bits;
  return exchange_value(line, mask, x, from > (lane() | (width - 1)) ? lane() : from);
}

// `change` of the number at p; the number before.
template <class T, class F>
__attribute__((no_sanitize("thread"))) T atomic(T* p, F change) {
  atomic_begin(p, sizeof(T));
  const T before = *p;
  *p = change(before);
  return before;
}

}  // namespace emulation

#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block_index())
#define blockDim (emulation::block_extent())
#define gridDim (emulation::grid_extent())
constexpr int warpSize = 32;

#define __syncthreads() emulation::barrier(__LINE__)
#define __syncthreads_count(yes) emulation::barrier(__LINE__, yes)
#define __syncthreads_or(yes) (emulation::barrier(__LINE__, yes) > 0)
#define __syncwarp(...) emulation::warp_barrier(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) emulation::shuffle(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) emulation::shuffle_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) emulation::shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) emulation::shuffle_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, yes) emulation::ballot(__LINE__, mask, yes)
#define __any_sync(mask, yes) (emulation::ballot(__LINE__, mask, yes) != 0)
#define __all_sync(mask, yes) (emulation::ballot(__LINE__, mask, !(yes)) == 0)
#define __threadfence() emulation::fence()

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}

template <class T>
T atomicAdd(T* p, T x) {
  return emulation::atomic(p, [=](T old) { return static_cast<T>(old + x); });
}
template <class T>
T atomicMax(T* p, T x) {
  return emulation::atomic(p, [=](T old) { return old > x ? old : x; });
}
template <class T>
T atomicMin(T* p, T x) {
  return emulation::atomic(p, [=](T old) { return old < x ? old : x; });
}
template <class T>
T atomicExch(T* p, T x) {
  return emulation::atomic(p, [=](T) { return x; });
}
template <class T>
T atomicOr(T* p, T x) {
  return emulation::atomic(p, [=](T old) { return old | x; });
}
template <class T>
T atomicCAS(T* p, T expected, T x) {
  return emulation::atomic(p, [=](T old) { return old == expected ? x : old; });
}
