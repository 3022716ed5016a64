// Matrix products of a few rows at a time, in the vector types of GCC and Clang: blocks of rows stay in the cache from
// layer to layer, and the bias and a ReLU are part of the product.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/common.h"

namespace fastrl {
namespace tiles {

#if defined(__GNUC__)
template <int n>
struct VectorOf {
  typedef float type __attribute__((vector_size(4 * n)));
};
template <int n>
using Vector = typename VectorOf<n>::type;
// NaN stays NaN.
template <class V>
FASTRL_INLINE V at_least_0(V v) {
  return v < V{} ? V{} : v;
}
#else
template <int n>
struct Vector {
  float x[n];
  Vector& operator+=(const Vector& o) {
    for (int i = 0; i < n; ++i) x[i] += o.x[i];
    return *this;
  }
  friend Vector operator*(float s, const Vector& v) {
    Vector r;
    for (int i = 0; i < n; ++i) r.x[i] = s * v.x[i];
    return r;
  }
  friend Vector operator*(const Vector& u, const Vector& v) {
    Vector r;
    for (int i = 0; i < n; ++i) r.x[i] = u.x[i] * v.x[i];
    return r;
  }
};
template <class V>
FASTRL_INLINE V at_least_0(V v) {
  for (float& x : v.x) x = x < 0 ? 0.0f : x;
  return v;
}
#endif

template <class V>
FASTRL_INLINE V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
FASTRL_INLINE void store(float* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// A matrix that is read one number at a time: a(i, k) is data[i * row + k * column].
struct Left {
  const float* data;
  int64_t row, column;
};
// What a product starts from: the rows of C0, one row for all (`row` 0), or nothing (`data` null).
struct Start {
  const float* data;
  int64_t row;
};

// m rows (a constant) and `wide` vectors of C = C0 + A B.
template <class V, int m, int wide, bool relu>
FASTRL_INLINE void tile(Left a, const float* b, int64_t b_row, Start c0, float* c, int64_t c_row, int64_t k) {
  constexpr int64_t lanes = sizeof(V) / sizeof(float);
  V sum[m][wide];
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < wide; ++j) sum[i][j] = c0.data ? load<V>(c0.data + i * c0.row + j * lanes) : V{};
  for (int64_t x = 0; x < k; ++x) {
    V right[wide];
    for (int j = 0; j < wide; ++j) right[j] = load<V>(b + x * b_row + j * lanes);
    for (int i = 0; i < m; ++i) {
      const float left = a.data[i * a.row + x * a.column];
      for (int j = 0; j < wide; ++j) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < wide; ++j) store<V>(c + i * c_row + j * lanes, relu ? at_least_0<V>(sum[i][j]) : sum[i][j]);
}

// `wide` vectors of all rows: m at a time, and what is left by halves.
template <class V, int m, int wide, bool relu>
FASTRL_INLINE void columns_of(Left a, const float* b, int64_t b_row, Start c0, float* c, int64_t c_row, int64_t rows,
                              int64_t k) {
  constexpr int half = m > 4 ? m / 2 : m;
  int64_t i = 0;
  const auto from = [&]() -> Left { return {a.data + i * a.row, a.row, a.column}; };
  const auto start = [&]() -> Start { return {c0.data ? c0.data + i * c0.row : nullptr, c0.row}; };
  for (; i + m <= rows; i += m) tile<V, m, wide, relu>(from(), b, b_row, start(), c + i * c_row, c_row, k);
  for (; i + half <= rows; i += half) tile<V, half, wide, relu>(from(), b, b_row, start(), c + i * c_row, c_row, k);
  for (; i + 2 <= rows; i += 2) tile<V, 2, wide, relu>(from(), b, b_row, start(), c + i * c_row, c_row, k);
  for (; i < rows; ++i) tile<V, 1, wide, relu>(from(), b, b_row, start(), c + i * c_row, c_row, k);
}

// C = C0 + A B, or its positive part; C [rows, columns], columns a multiple of 16.
template <class V, int m, bool relu>
FASTRL_INLINE void multiply(Left a, const float* b, int64_t b_row, Start c0, float* c, int64_t c_row, int64_t rows,
                            int64_t columns, int64_t k) {
  constexpr int64_t lanes = sizeof(V) / sizeof(float);
  int64_t j = 0;
  const auto start = [&]() -> Start { return {c0.data ? c0.data + j : nullptr, c0.row}; };
  for (; j + 2 * lanes <= columns; j += 2 * lanes)
    columns_of<V, m, 2, relu>(a, b + j, b_row, start(), c + j, c_row, rows, k);
  for (; j < columns; j += lanes) columns_of<V, m, 1, relu>(a, b + j, b_row, start(), c + j, c_row, rows, k);
}

// The sum of the lanes, by halves.
template <class V>
FASTRL_INLINE float sum_lanes(V v) {
  constexpr int n = sizeof(V) / sizeof(float);
  float x[n];
  std::memcpy(x, &v, sizeof v);
  for (int half = n / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

// Of four at a time, which costs what one does: the same sums.
template <class V>
FASTRL_INLINE void sum_lanes(const V* v, float* out) {
  constexpr int n = sizeof(V) / sizeof(float);
  float x[4][n];
  for (int r = 0; r < 4; ++r) {
    std::memcpy(x[r], v + r, sizeof(V));
    for (int half = n / 2; half > 2; half /= 2)
      for (int i = 0; i < half; ++i) x[r][i] += x[r][i + half];
  }
  for (int r = 0; r < 4; ++r) out[r] = (x[r][0] + x[r][2]) + (x[r][1] + x[r][3]);
}

// out[j] = bias[j] + sum_k w[j * w_row + k] x[k] for j < n: of one row, with the weights as they lie.
template <class V>
FASTRL_INLINE void dots(const float* w, int64_t w_row, const float* bias, const float* x, float* out, int64_t n,
                        int64_t k) {
  constexpr int64_t lanes = sizeof(V) / sizeof(float);
  constexpr int m = 4;
  const int64_t whole = k / lanes * lanes;
  int64_t j = 0;
  for (; j + m <= n; j += m) {
    V sum[m] = {};
    for (int64_t i = 0; i < whole; i += lanes) {
      const V right = load<V>(x + i);
      for (int r = 0; r < m; ++r) sum[r] += load<V>(w + (j + r) * w_row + i) * right;
    }
    float sums[m];
    sum_lanes(sum, sums);
    for (int r = 0; r < m; ++r) {
      float rest = bias[j + r];
      for (int64_t i = whole; i < k; ++i) rest += w[(j + r) * w_row + i] * x[i];
      out[j + r] = whole ? rest + sums[r] : rest;
    }
  }
  for (; j < n; ++j) {
    V sum{};
    for (int64_t i = 0; i < whole; i += lanes) sum += load<V>(w + j * w_row + i) * load<V>(x + i);
    float rest = bias[j];
    for (int64_t i = whole; i < k; ++i) rest += w[j * w_row + i] * x[i];
    out[j] = whole ? rest + sum_lanes(sum) : rest;
  }
}

// to [columns, rows] = from [rows, columns] transposed; rows of `to` are filled up with zeros to `filled`.
inline void transpose(const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row,
                      int64_t filled) {
  int64_t j = 0;
#if defined(__GNUC__)
  typedef float V __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  for (; j + 4 <= rows; j += 4) {
    int64_t i = 0;
    for (; i + 4 <= columns; i += 4) {
      const float* p = from + j * from_row + i;
      const V a = load<V>(p), b = load<V>(p + from_row), c = load<V>(p + 2 * from_row), d = load<V>(p + 3 * from_row);
#if defined(__clang__)
      const V ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const V cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      const V w = __builtin_shufflevector(ab, cd, 0, 1, 4, 5), x = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
      const V y = __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5), z = __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7);
#else
      const V ab = __builtin_shuffle(a, b, I{0, 4, 1, 5}), ab2 = __builtin_shuffle(a, b, I{2, 6, 3, 7});
      const V cd = __builtin_shuffle(c, d, I{0, 4, 1, 5}), cd2 = __builtin_shuffle(c, d, I{2, 6, 3, 7});
      const V w = __builtin_shuffle(ab, cd, I{0, 1, 4, 5}), x = __builtin_shuffle(ab, cd, I{2, 3, 6, 7});
      const V y = __builtin_shuffle(ab2, cd2, I{0, 1, 4, 5}), z = __builtin_shuffle(ab2, cd2, I{2, 3, 6, 7});
#endif
      float* q = to + i * to_row + j;
      store<V>(q, w), store<V>(q + to_row, x);
      store<V>(q + 2 * to_row, y), store<V>(q + 3 * to_row, z);
    }
    for (; i < columns; ++i)
      for (int64_t r = j; r < j + 4; ++r) to[i * to_row + r] = from[r * from_row + i];
  }
#endif
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t r = j; r < rows; ++r) to[i * to_row + r] = from[r * from_row + i];
    std::fill(to + i * to_row + rows, to + i * to_row + filled, 0.0f);
  }
}

}  // namespace tiles
}  // namespace fastrl
