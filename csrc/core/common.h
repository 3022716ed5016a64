// What every kernel needs: host/device marks, function multi-versioning, and the result of a value check.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__CUDACC__)
#define FASTRL_HD __host__ __device__
#else
#define FASTRL_HD
#endif

// One build for SSE2 to AVX-512: GCC compiles the function once per level and picks at load time. Sanitizer builds turn
// it off (TSan crashes in the resolvers).
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) && !defined(FASTRL_NO_CLONES)
#define FASTRL_X86_LEVELS 1
#define FASTRL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTRL_X86_LEVELS 0
#define FASTRL_CLONES
#endif

#if defined(__GNUC__)
#define FASTRL_INLINE inline __attribute__((always_inline))
#else
#define FASTRL_INLINE inline
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

#if FASTRL_X86_LEVELS
// 4, 3 or 1: the x86-64 level whose code runs here. FASTRL_SIMD_LEVEL lowers it, to test the code of lesser processors.
inline int x86_level() {
  const char* wanted = std::getenv("FASTRL_SIMD_LEVEL");
  const int limit = wanted ? std::atoi(wanted) : 4;
  __builtin_cpu_init();
  if (limit >= 4 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return 4;
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  return limit >= 3 && v3 ? 3 : 1;
}
#endif

}  // namespace fastrl
