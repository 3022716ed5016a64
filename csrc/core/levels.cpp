#include "core/levels.h"

#include <cstdlib>

namespace fastrl {

static int level_here() {
#if FASTRL_X86_LEVELS
  const char* wanted = std::getenv("FASTRL_SIMD_LEVEL");
  const int limit = wanted ? std::atoi(wanted) : 4;
  __builtin_cpu_init();
  if (limit >= 4 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return 4;
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  return limit >= 3 && v3 ? 3 : 1;
#else
  return 1;
#endif
}

const int kLevel = level_here();

const char* simd_level() {
#if FASTRL_X86_LEVELS
  return kLevel == 4 ? "x86-64-v4 (AVX-512)" : kLevel == 3 ? "x86-64-v3 (AVX2)" : "x86-64 (SSE2)";
#elif defined(__aarch64__)
  return "NEON";
#else
  return "the compiler's default";
#endif
}

}  // namespace fastrl
