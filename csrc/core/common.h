// What every kernel needs: host/device marks, inlining, and the result of a value check.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTRL_HD __host__ __device__
#else
#define FASTRL_HD
#endif

#if defined(__GNUC__)
#define FASTRL_INLINE inline __attribute__((always_inline))
#define FASTRL_HIDDEN __attribute__((visibility("hidden")))
#else
#define FASTRL_INLINE inline
#define FASTRL_HIDDEN
#endif

// The passes of the loop that follows do not write what others read: results never share memory with arguments.
#if defined(__clang__)
#define FASTRL_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define FASTRL_INDEPENDENT _Pragma("GCC ivdep")
#elif defined(_MSC_VER)
#define FASTRL_INDEPENDENT __pragma(loop(ivdep))
#else
#define FASTRL_INDEPENDENT
#endif

namespace fastrl {

// The first item that failed a value check, and the value that did: the caller's array may have changed since.
struct BadItem {
  enum Kind { none, index, not_finite_or_negative, too_large } kind = none;
  int64_t position = -1;
  int64_t index_value = 0;
  double value = 0;
};

}  // namespace fastrl
