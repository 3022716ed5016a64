// One build for SSE2 to AVX-512: a loop is compiled for several instruction sets, and the processor's own is chosen
// when it is called. The only such mechanism. A loop is a FASTRL_INLINE function, given as
// at_level<loop>(arguments...); whatever it calls must be FASTRL_INLINE too, or stays code for any processor. Loops
// written by hand for an instruction set stand in an .inl that is included once a level, with FASTRL_TARGET_<level> on
// every function.
#pragma once

#include "core/common.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define FASTRL_X86_LEVELS 1
#define FASTRL_TARGET_3 __attribute__((target("arch=x86-64-v3")))
#define FASTRL_TARGET_4 __attribute__((target("arch=x86-64-v4")))
#else
#define FASTRL_X86_LEVELS 0
#endif

namespace fastrl {

// 4 (AVX-512), 3 (AVX2) or 1: the x86-64 level whose code runs here; 1 on other processors. FASTRL_SIMD_LEVEL, read
// when the module is imported, lowers it, to test the code of lesser processors.
extern FASTRL_HIDDEN const int kLevel;

// Its name, for people.
const char* simd_level();

#if FASTRL_X86_LEVELS

// The same function for each level.
template <auto f>
struct Compiled;
template <class R, class... A, R (*f)(A...)>
struct Compiled<f> {
  static R v1(A... a) { return f(a...); }
  FASTRL_TARGET_3 static R v3(A... a) { return f(a...); }
  FASTRL_TARGET_4 static R v4(A... a) { return f(a...); }
};

template <auto v1, auto v3, auto v4, class... A>
FASTRL_INLINE auto at_level(A&&... a) {
  return kLevel >= 4 ? v4(a...) : kLevel >= 3 ? v3(a...) : v1(a...);
}
template <auto f, class... A>
FASTRL_INLINE auto at_level(A&&... a) {
  return at_level<Compiled<f>::v1, Compiled<f>::v3, Compiled<f>::v4>(a...);
}
// Without AVX-512, for short calls amid other code: on processors that lower their clock for 512-bit arithmetic they
// are no slower by themselves, and what runs around them is faster (a forward and backward pass of 117 us takes 104 us
// on Cascade Lake).
template <auto f, class... A>
FASTRL_INLINE auto at_level_256(A&&... a) {
  return at_level<Compiled<f>::v1, Compiled<f>::v3, Compiled<f>::v3>(a...);
}

#else

template <auto f, class... A>
FASTRL_INLINE auto at_level(A&&... a) {
  return f(a...);
}
template <auto f, class... A>
FASTRL_INLINE auto at_level_256(A&&... a) {
  return f(a...);
}

#endif

}  // namespace fastrl
