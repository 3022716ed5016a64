#include "random/random.h"

#include <type_traits>

#include "core/levels.h"

#if FASTRL_X86_LEVELS
#include <immintrin.h>
#endif

namespace fastrl {
namespace {

// Where block i goes, by the type of the numbers: as uint64_t, words 0 and 1 to first[i] and 2 and 3 to second[i]; as
// uint32_t, words 0 and 2 to first[2 i] and first[2 i + 1] and 1 and 3 to second.
template <class Word>
constexpr bool kPairs = std::is_same_v<Word, uint32_t>;

template <class Word>
void blocks_plain(uint64_t seed, uint64_t counter, int64_t n, Word* first, Word* second) {
  for (int64_t i = 0; i < n; ++i) {
    const Philox4 b = philox(seed, counter + static_cast<uint64_t>(i));
    if constexpr (kPairs<Word>) {
      first[2 * i] = b.word[0], first[2 * i + 1] = b.word[2];
      second[2 * i] = b.word[1], second[2 * i + 1] = b.word[3];
    } else {
      first[i] = uint64_t{b.word[1]} << 32 | b.word[0];
      if (second) second[i] = uint64_t{b.word[3]} << 32 | b.word[2];
    }
  }
}

#if FASTRL_X86_LEVELS
// A word in the low half of 64 bits: the multiplication reads no more, so the other half may hold anything. Two vectors
// of blocks at a time: the rounds of one wait for each other.
#define FASTRL_PHILOX(name, level, V, kLanes, set1, add, mul, shift_right, shift_left, xor3, join, put, iota)       \
  template <int kVectors, class Word>                                                                               \
  __attribute__((target(level), always_inline)) inline void name##_step(const V* k0, const V* k1, uint64_t counter, \
                                                                        int64_t i, Word* first, Word* second) {     \
    const V m0 = set1(0xD2511F53), m1 = set1(0xCD9E8D57);                                                           \
    V c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];                                                       \
    for (int v = 0; v < kVectors; ++v) {                                                                            \
      c0[v] = add(set1(static_cast<int64_t>(counter + static_cast<uint64_t>(i + v * kLanes))), iota);               \
      c1[v] = shift_right(c0[v], 32), c2[v] = c3[v] = set1(0);                                                      \
    }                                                                                                               \
    _Pragma("GCC unroll 10") for (int r = 0; r < 10; ++r) {                                                         \
      _Pragma("GCC unroll 2") for (int v = 0; v < kVectors; ++v) {                                                  \
        const V p0 = mul(c0[v], m0), p1 = mul(c2[v], m1);                                                           \
        c0[v] = xor3(shift_right(p1, 32), c1[v], k0[r]), c1[v] = p1;                                                \
        c2[v] = xor3(shift_right(p0, 32), c3[v], k1[r]), c3[v] = p0;                                                \
      }                                                                                                             \
    }                                                                                                               \
    for (int v = 0; v < kVectors; ++v) {                                                                            \
      const V *const a = kPairs<Word> ? &c2[v] : &c1[v], *const b = kPairs<Word> ? &c1[v] : &c2[v];                 \
      const int64_t at = (i + v * kLanes) * static_cast<int64_t>(sizeof(uint64_t) / sizeof(Word));                  \
      put(first + at, join(c0[v], shift_left(*a, 32)));                                                             \
      if (kPairs<Word> || second) put(second + at, join(*b, shift_left(c3[v], 32)));                                \
    }                                                                                                               \
  }                                                                                                                 \
  template <class Word>                                                                                             \
  __attribute__((target(level))) void name(uint64_t seed, uint64_t counter, int64_t n, Word* first, Word* second) { \
    V k0[10], k1[10];                                                                                               \
    for (uint32_t r = 0; r < 10; ++r) {                                                                             \
      k0[r] = set1(static_cast<uint32_t>(seed) + r * 0x9E3779B9u);                                                  \
      k1[r] = set1(static_cast<uint32_t>(seed >> 32) + r * 0xBB67AE85u);                                            \
    }                                                                                                               \
    int64_t i = 0;                                                                                                  \
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) name##_step<2>(k0, k1, counter, i, first, second);                 \
    for (; i < n; i += kLanes) name##_step<1>(k0, k1, counter, i, first, second);                                   \
  }

#define FASTRL_XOR3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define FASTRL_JOIN(low, high) _mm512_mask_blend_epi32(0xAAAA, low, high)
FASTRL_PHILOX(blocks_512, "arch=x86-64-v4", __m512i, 8, _mm512_set1_epi64, _mm512_add_epi64, _mm512_mul_epu32,
              _mm512_srli_epi64, _mm512_slli_epi64, FASTRL_XOR3, FASTRL_JOIN, _mm512_storeu_si512,
              _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0))
#undef FASTRL_XOR3
#undef FASTRL_JOIN

#define FASTRL_XOR3(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
#define FASTRL_JOIN(low, high) _mm256_blend_epi32(low, high, 0xAA)
#define FASTRL_PUT(at, x) _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x)
FASTRL_PHILOX(blocks_256, "arch=x86-64-v3", __m256i, 4, _mm256_set1_epi64x, _mm256_add_epi64, _mm256_mul_epu32,
              _mm256_srli_epi64, _mm256_slli_epi64, FASTRL_XOR3, FASTRL_JOIN, FASTRL_PUT, _mm256_set_epi64x(3, 2, 1, 0))
#undef FASTRL_XOR3
#undef FASTRL_JOIN
#undef FASTRL_PUT
#undef FASTRL_PHILOX
#endif

template <class Word>
void blocks(uint64_t seed, uint64_t counter, int64_t n, Word* first, Word* second) {
#if FASTRL_X86_LEVELS
  at_level<blocks_plain<Word>, blocks_256<Word>, blocks_512<Word>>(seed, counter, n, first, second);
#else
  blocks_plain(seed, counter, n, first, second);
#endif
}

}  // namespace

void philox_blocks(uint64_t seed, uint64_t counter, int64_t n, uint64_t* first, uint64_t* second) {
  blocks(seed, counter, n, first, second);
}

void philox_pairs(uint64_t seed, uint64_t counter, int64_t n, uint32_t* first, uint32_t* second) {
  blocks(seed, counter, n, first, second);
}

}  // namespace fastrl
