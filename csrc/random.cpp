#include "random.h"

#if FASTRL_X86_LEVELS
#include <immintrin.h>
#endif

namespace fastrl {
namespace {

using Blocks = void (*)(uint64_t seed, uint64_t counter, int64_t n, uint64_t* first, uint64_t* second);

void blocks_plain(uint64_t seed, uint64_t counter, int64_t n, uint64_t* first, uint64_t* second) {
  for (int64_t i = 0; i < n; ++i) {
    const Philox4 b = philox(seed, counter + static_cast<uint64_t>(i));
    first[i] = uint64_t{b.word[1]} << 32 | b.word[0];
    if (second) second[i] = uint64_t{b.word[3]} << 32 | b.word[2];
  }
}

#if FASTRL_X86_LEVELS
// A word in the low half of 64 bits: the multiplication reads no more, so the other half may hold anything.
#define FASTRL_PHILOX(name, level, V, kLanes, set1, add, mul, shift_right, shift_left, xor3, join, store, iota)   \
  __attribute__((target(level))) void name(uint64_t seed, uint64_t counter, int64_t n, uint64_t* first,           \
                                           uint64_t* second) {                                                    \
    const V m0 = set1(0xD2511F53), m1 = set1(0xCD9E8D57);                                                         \
    V k0[10], k1[10];                                                                                             \
    for (uint32_t r = 0; r < 10; ++r) {                                                                           \
      k0[r] = set1(static_cast<uint32_t>(seed) + r * 0x9E3779B9u);                                                \
      k1[r] = set1(static_cast<uint32_t>(seed >> 32) + r * 0xBB67AE85u);                                          \
    }                                                                                                             \
    for (int64_t i = 0; i < n; i += kLanes) {                                                                     \
      V c0 = add(set1(static_cast<int64_t>(counter + static_cast<uint64_t>(i))), iota), c1 = shift_right(c0, 32); \
      V c2 = set1(0), c3 = set1(0);                                                                               \
      _Pragma("GCC unroll 10") for (int r = 0; r < 10; ++r) {                                                     \
        const V p0 = mul(c0, m0), p1 = mul(c2, m1);                                                               \
        c0 = xor3(shift_right(p1, 32), c1, k0[r]), c1 = p1;                                                       \
        c2 = xor3(shift_right(p0, 32), c3, k1[r]), c3 = p0;                                                       \
      }                                                                                                           \
      store(first + i, join(c0, shift_left(c1, 32)));                                                             \
      if (second) store(second + i, join(c2, shift_left(c3, 32)));                                                \
    }                                                                                                             \
  }

#define FASTRL_XOR3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define FASTRL_JOIN(low, high) _mm512_mask_blend_epi32(0xAAAA, low, high)
#define FASTRL_STORE(at, x) _mm512_storeu_si512(at, x)
FASTRL_PHILOX(blocks_512, "avx512f", __m512i, 8, _mm512_set1_epi64, _mm512_add_epi64, _mm512_mul_epu32,
              _mm512_srli_epi64, _mm512_slli_epi64, FASTRL_XOR3, FASTRL_JOIN, FASTRL_STORE,
              _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0))
#undef FASTRL_XOR3
#undef FASTRL_JOIN
#undef FASTRL_STORE

#define FASTRL_XOR3(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
#define FASTRL_JOIN(low, high) _mm256_blend_epi32(low, high, 0xAA)
#define FASTRL_STORE(at, x) _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x)
FASTRL_PHILOX(blocks_256, "avx2", __m256i, 4, _mm256_set1_epi64x, _mm256_add_epi64, _mm256_mul_epu32, _mm256_srli_epi64,
              _mm256_slli_epi64, FASTRL_XOR3, FASTRL_JOIN, FASTRL_STORE, _mm256_set_epi64x(3, 2, 1, 0))
#undef FASTRL_XOR3
#undef FASTRL_JOIN
#undef FASTRL_STORE
#undef FASTRL_PHILOX

Blocks choose() {
  const int level = x86_level();
  return level >= 4 ? blocks_512 : level >= 3 ? blocks_256 : blocks_plain;
}
#else
Blocks choose() { return blocks_plain; }
#endif

const Blocks blocks = choose();

}  // namespace

void philox_blocks(uint64_t seed, uint64_t counter, int64_t n, uint64_t* first, uint64_t* second) {
  blocks(seed, counter, n, first, second);
}

}  // namespace fastrl
