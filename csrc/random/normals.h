// Standard normals from Philox blocks, and many random numbers at a time.
#pragma once

#include "core/simd_math.h"
#include "random/random.h"

namespace fastrl {

// Two standard normals from two words of a block (Box-Muller): u = (first | 1) 2^-32 in (0, 1), v = second 2^-32 turns.
// The largest is sqrt(64 log 2) = 6.66. The last argument gives the type.
template <class T>
struct NormalPair {
  T even, odd;
};
template <class T>
FASTRL_HD FASTRL_INLINE T normal_radius(uint32_t first, T type) {
  return root(static_cast<T>(2) * minus_log_uniform(first, type));
}
template <class T>
FASTRL_HD FASTRL_INLINE NormalPair<T> normal_pair(T radius, uint32_t second) {
  const CosSin<T> turn = cos_sin_turns(second, radius);
  return {radius * turn.cos, radius * turn.sin};
}
template <class T>
FASTRL_HD FASTRL_INLINE NormalPair<T> normal_pair(uint32_t first, uint32_t second, T type) {
  return normal_pair(normal_radius(first, type), second);
}

// Four elements share a block, in their order: what a call of n elements takes.
FASTRL_HD FASTRL_INLINE int64_t normal_blocks(int64_t n) { return n / 4 + (n % 4 != 0); }

// element[i] <- the number of block counter + i; the i-th normal of a call.
void fill_uniform(uint64_t seed, uint64_t counter, int64_t n, double* element);
void fill_normal(uint64_t seed, uint64_t counter, int64_t n, double* element);

// The normals first .. first + n - 1 of a call, n <= kNormals. What follows them, up to a whole vector, may be read.
constexpr int64_t kNormals = 512;
template <class T>
class Normals {
 public:
  const T* draw(uint64_t seed, uint64_t counter, int64_t first, int64_t n);

 private:
  alignas(64) T numbers_[kNormals + 64] = {};
};

}  // namespace fastrl
