#include "random/normals.h"

#include <cstring>

#include "core/levels.h"

namespace fastrl {
namespace {

constexpr int64_t kChunk = 256;

FASTRL_INLINE void uniform_loop(const uint64_t* bits, int64_t n, double* u) {
  for (int64_t i = 0; i < n; ++i) u[i] = uniform(bits[i]);
}

// Two loops: short ones keep processors busier.
template <class T>
FASTRL_INLINE void radius_loop(const uint32_t* first, int64_t pairs, T* radius) {
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < pairs; ++i) radius[i] = normal_radius(first[i], static_cast<T>(0));
}

template <class T>
FASTRL_INLINE void turn_loop(const T* radius, const uint32_t* second, int64_t pairs, T* x) {
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < pairs; ++i) {
    const NormalPair<T> z = normal_pair(radius[i], second[i]);
    x[2 * i] = z.even;
    x[2 * i + 1] = z.odd;
  }
}

}  // namespace

void fill_uniform(uint64_t seed, uint64_t counter, int64_t n, double* element) {
  alignas(64) uint64_t bits[kChunk];
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t m = n - i < kChunk ? n - i : kChunk;
    philox_blocks(seed, counter + static_cast<uint64_t>(i), (m + 15) / 16 * 16, bits, nullptr);
    at_level<uniform_loop>(bits, m, element + i);
  }
}

void fill_normal(uint64_t seed, uint64_t counter, int64_t n, double* element) {
  Normals<double> normals;
  for (int64_t i = 0; i < n; i += kNormals) {
    const int64_t m = n - i < kNormals ? n - i : kNormals;
    std::memcpy(element + i, normals.draw(seed, counter, i, m), static_cast<size_t>(m) * sizeof(double));
  }
}

template <class T>
const T* Normals<T>::draw(uint64_t seed, uint64_t counter, int64_t first, int64_t n) {
  constexpr int64_t kMost = kNormals / 2 + 32;
  alignas(64) uint32_t first_words[kMost], second_words[kMost];
  alignas(64) T radius[kMost];
  const int64_t skip = first % 4, blocks = (normal_blocks(skip + n) + 7) / 8 * 8;  // whole vectors
  philox_pairs(seed, counter + static_cast<uint64_t>(first / 4), blocks, first_words, second_words);
  at_level<radius_loop<T>>(first_words, 2 * blocks, radius);
  at_level<turn_loop<T>>(radius, second_words, 2 * blocks, numbers_);
  return numbers_ + skip;
}

template class Normals<float>;
template class Normals<double>;

}  // namespace fastrl
