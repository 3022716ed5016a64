// Several doubles side by side, in the vector types of GCC and Clang: for loops that the compiler does not vectorise
// well by itself (short rows, bytes beside doubles, scans within a vector). Four fit AVX2 and eight AVX-512; GCC takes
// wider ones apart through memory. Elsewhere FASTRL_LANES is 0.
#pragma once

#include <cstring>

#include "core/common.h"
#include "core/simd_math.h"

#if !defined(__CUDACC__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12))
#define FASTRL_LANES 1
#else
#define FASTRL_LANES 0
#endif

namespace fastrl {

FASTRL_HD FASTRL_INLINE double select(bool condition, double yes, double no) { return condition ? yes : no; }
FASTRL_HD FASTRL_INLINE float select(bool condition, float yes, float no) { return condition ? yes : no; }

#if FASTRL_LANES

typedef double Doubles4 __attribute__((vector_size(32)));
typedef double Doubles8 __attribute__((vector_size(64)));
typedef float Floats4 __attribute__((vector_size(16)));
typedef float Floats8 __attribute__((vector_size(32)));
// Of a comparison: -1 or 0 in each lane.
typedef int64_t DoublesMask4 __attribute__((vector_size(32)));
typedef int64_t DoublesMask8 __attribute__((vector_size(64)));
typedef int32_t FloatsMask4 __attribute__((vector_size(16)));
typedef int32_t FloatsMask8 __attribute__((vector_size(32)));

FASTRL_INLINE Doubles4 select(DoublesMask4 condition, Doubles4 yes, Doubles4 no) { return condition ? yes : no; }
FASTRL_INLINE Doubles8 select(DoublesMask8 condition, Doubles8 yes, Doubles8 no) { return condition ? yes : no; }
FASTRL_INLINE Floats4 select(FloatsMask4 condition, Floats4 yes, Floats4 no) { return condition ? yes : no; }
FASTRL_INLINE Floats8 select(FloatsMask8 condition, Floats8 yes, Floats8 no) { return condition ? yes : no; }

// Loads and stores by memcpy: the memory need not be aligned to a vector.
template <class V, class T>
FASTRL_INLINE V load_as(const T* p) {
  V x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <class V, class T>
FASTRL_INLINE void store_as(T* p, V x) {
  std::memcpy(p, &x, sizeof x);
}

// Lane i of the result is lane i + k; past the last one those of `after`.
template <int k>
FASTRL_INLINE Doubles4 shift_lanes(Doubles4 x, Doubles4 after) {
  return __builtin_shufflevector(x, after, k, k + 1, k + 2, k + 3);
}
template <int k>
FASTRL_INLINE Doubles8 shift_lanes(Doubles8 x, Doubles8 after) {
  return __builtin_shufflevector(x, after, k, k + 1, k + 2, k + 3, k + 4, k + 5, k + 6, k + 7);
}

template <>
struct Bits<Doubles4> {
  using type = uint64_t __attribute__((vector_size(32)));
};
template <>
struct Bits<Doubles8> {
  using type = uint64_t __attribute__((vector_size(64)));
};

#endif

}  // namespace fastrl
