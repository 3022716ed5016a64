#include "core/level.h"

#include "core/common.h"

namespace fastrl {

const char* simd_level() {
#if FASTRL_X86_LEVELS
  const int level = x86_level();
  return level == 4 ? "x86-64-v4 (AVX-512)" : level == 3 ? "x86-64-v3 (AVX2)" : "x86-64 (SSE2)";
#elif defined(__aarch64__)
  return "NEON";
#else
  return "the compiler's default";
#endif
}

}  // namespace fastrl
