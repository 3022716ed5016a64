// Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC 2011), the same stream on CPU and GPU.
#pragma once

#include "core/common.h"

namespace fastrl {

struct Philox4 {
  uint32_t word[4];
};

// The block at `counter` of the stream `seed`.
FASTRL_HD FASTRL_INLINE Philox4 philox(uint64_t seed, uint64_t counter) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
#if defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 10  // without it the loop around the call does not vectorise
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in [0, 1) from the first 53 of 64 random bits.
FASTRL_HD FASTRL_INLINE double uniform(uint64_t bits) {
  // As int64: there is no vector instruction for uint64 to double below AVX-512.
  return static_cast<double>(static_cast<int64_t>(bits >> 11)) * 0x1p-53;
}

// From the first two words of a block.
FASTRL_HD FASTRL_INLINE double uniform(const Philox4& block) {
  return uniform(uint64_t{block.word[1]} << 32 | block.word[0]);
}

// The blocks counter .. counter + n - 1: words 0 and 1 of each in `first`, 2 and 3 in `second` where it is not null. n
// is a multiple of 8. On the host only, and four times as fast as a loop over `philox`, in which compilers multiply 64
// bits.
void philox_blocks(uint64_t seed, uint64_t counter, int64_t n, uint64_t* first, uint64_t* second);

// The same blocks as pairs of words, two a block: those of block counter + i are first[2 i], second[2 i] (words 0 and
// 1) and first[2 i + 1], second[2 i + 1] (2 and 3). n is a multiple of 8, and neither is null.
void philox_pairs(uint64_t seed, uint64_t counter, int64_t n, uint32_t* first, uint32_t* second);

}  // namespace fastrl
