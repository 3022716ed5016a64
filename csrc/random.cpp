#include "random.h"

#include <type_traits>

#if FASTRL_X86_LEVELS
#include <immintrin.h>
#endif

namespace fastrl {
namespace {

// Where a vector of blocks goes: a[l] holds words 0 and 1 of block l, b[l] words 2 and 3.
struct Apart {
  uint64_t *first, *second;
};
struct Together {
  uint32_t* words;
};

template <class To>
void blocks_plain(uint64_t seed, uint64_t counter, int64_t n, const To& to) {
  for (int64_t i = 0; i < n; ++i) {
    const Philox4 b = philox(seed, counter + static_cast<uint64_t>(i));
    if constexpr (std::is_same_v<To, Together>) {
      for (int64_t k = 0; k < 4; ++k) to.words[4 * i + k] = b.word[k];
    } else {
      to.first[i] = uint64_t{b.word[1]} << 32 | b.word[0];
      if (to.second) to.second[i] = uint64_t{b.word[3]} << 32 | b.word[2];
    }
  }
}

#if FASTRL_X86_LEVELS
__attribute__((target("avx512f"), always_inline)) inline void put(const Apart& to, int64_t i, __m512i a, __m512i b) {
  _mm512_storeu_si512(to.first + i, a);
  if (to.second) _mm512_storeu_si512(to.second + i, b);
}
__attribute__((target("avx512f"), always_inline)) inline void put(const Together& to, int64_t i, __m512i a, __m512i b) {
  const __m512i low = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), high = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
  _mm512_storeu_si512(to.words + 4 * i, _mm512_permutex2var_epi64(a, low, b));
  _mm512_storeu_si512(to.words + 4 * i + 16, _mm512_permutex2var_epi64(a, high, b));
}
__attribute__((target("avx2"), always_inline)) inline void put256(void* at, __m256i x) {
  _mm256_storeu_si256(static_cast<__m256i*>(at), x);
}
__attribute__((target("avx2"), always_inline)) inline void put(const Apart& to, int64_t i, __m256i a, __m256i b) {
  put256(to.first + i, a);
  if (to.second) put256(to.second + i, b);
}
__attribute__((target("avx2"), always_inline)) inline void put(const Together& to, int64_t i, __m256i a, __m256i b) {
  const __m256i even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);  // blocks 0, 2 and 1, 3
  put256(to.words + 4 * i, _mm256_permute2x128_si256(even, odd, 0x20));
  put256(to.words + 4 * i + 8, _mm256_permute2x128_si256(even, odd, 0x31));
}

// A word in the low half of 64 bits: the multiplication reads no more, so the other half may hold anything. Two vectors
// of blocks at a time: the rounds of one wait for each other.
#define FASTRL_PHILOX(name, level, V, kLanes, set1, add, mul, shift_right, shift_left, xor3, join, iota)            \
  template <int kVectors, class To>                                                                                 \
  __attribute__((target(level), always_inline)) inline void name##_step(const V* k0, const V* k1, uint64_t counter, \
                                                                        int64_t i, const To& to) {                  \
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
    for (int v = 0; v < kVectors; ++v)                                                                              \
      put(to, i + v * kLanes, join(c0[v], shift_left(c1[v], 32)), join(c2[v], shift_left(c3[v], 32)));              \
  }                                                                                                                 \
  template <class To>                                                                                               \
  __attribute__((target(level))) void name(uint64_t seed, uint64_t counter, int64_t n, const To& to) {              \
    V k0[10], k1[10];                                                                                               \
    for (uint32_t r = 0; r < 10; ++r) {                                                                             \
      k0[r] = set1(static_cast<uint32_t>(seed) + r * 0x9E3779B9u);                                                  \
      k1[r] = set1(static_cast<uint32_t>(seed >> 32) + r * 0xBB67AE85u);                                            \
    }                                                                                                               \
    int64_t i = 0;                                                                                                  \
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) name##_step<2>(k0, k1, counter, i, to);                            \
    for (; i < n; i += kLanes) name##_step<1>(k0, k1, counter, i, to);                                              \
  }

#define FASTRL_XOR3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define FASTRL_JOIN(low, high) _mm512_mask_blend_epi32(0xAAAA, low, high)
FASTRL_PHILOX(blocks_512, "avx512f", __m512i, 8, _mm512_set1_epi64, _mm512_add_epi64, _mm512_mul_epu32,
              _mm512_srli_epi64, _mm512_slli_epi64, FASTRL_XOR3, FASTRL_JOIN, _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0))
#undef FASTRL_XOR3
#undef FASTRL_JOIN

#define FASTRL_XOR3(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
#define FASTRL_JOIN(low, high) _mm256_blend_epi32(low, high, 0xAA)
FASTRL_PHILOX(blocks_256, "avx2", __m256i, 4, _mm256_set1_epi64x, _mm256_add_epi64, _mm256_mul_epu32, _mm256_srli_epi64,
              _mm256_slli_epi64, FASTRL_XOR3, FASTRL_JOIN, _mm256_set_epi64x(3, 2, 1, 0))
#undef FASTRL_XOR3
#undef FASTRL_JOIN
#undef FASTRL_PHILOX

const int level = x86_level();
#endif

template <class To>
void blocks(uint64_t seed, uint64_t counter, int64_t n, const To& to) {
#if FASTRL_X86_LEVELS
  if (level >= 4) return blocks_512(seed, counter, n, to);
  if (level >= 3) return blocks_256(seed, counter, n, to);
#endif
  blocks_plain(seed, counter, n, to);
}

}  // namespace

void philox_blocks(uint64_t seed, uint64_t counter, int64_t n, uint64_t* first, uint64_t* second) {
  blocks(seed, counter, n, Apart{first, second});
}

void philox_words(uint64_t seed, uint64_t counter, int64_t n, uint32_t* words) {
  blocks(seed, counter, n, Together{words});
}

}  // namespace fastrl
