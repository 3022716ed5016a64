// How the drivers of the normal heads go through their rows: in chunks of whole rows, or parts of one, that stay in the
// cache, each in contiguous memory that ends on a whole vector: where it lies, or copied there.
#pragma once

#include <cstring>
#include <numeric>

#include "heads/columns.h"

namespace fastrl {

struct Chunk {
  int64_t row, rows, column, columns;
  int64_t size() const { return rows * columns; }
  // Always whole vectors, so that a number does not depend on its place.
  int64_t padded() const { return (size() + kVector - 1) / kVector * kVector; }
  static constexpr int64_t kVector = 16;
};

template <int64_t kChunk, class F>
FASTRL_INLINE void for_chunks(int64_t begin, int64_t end, int64_t columns, F f) {
  if (columns == 0) return f(Chunk{begin, end - begin, 0, 0});
  if (columns <= kChunk) {
    int64_t rows = kChunk / columns;
    const int64_t whole = Chunk::kVector / std::gcd(columns, Chunk::kVector);  // rows that end with a vector
    if (rows > whole) rows -= rows % whole;
    for (int64_t row = begin; row < end; row += rows) f(Chunk{row, end - row < rows ? end - row : rows, 0, columns});
    return;
  }
  for (int64_t row = begin; row < end; ++row)
    for (int64_t column = 0; column < columns; column += kChunk)
      f(Chunk{row, 1, column, columns - column < kChunk ? columns - column : kChunk});
}

// for_chunks with no chunk across the border of two pieces.
template <int64_t kChunk, class F>
FASTRL_INLINE void for_pieces(int64_t begin, int64_t end, int64_t columns, F f) {
  for (int64_t row = begin; row < end; row += kPieceRows)
    for_chunks<kChunk>(row, end - row < kPieceRows ? end : row + kPieceRows, columns, f);
}

template <class T>
FASTRL_INLINE T load_item(const char* at) {
  T x;
  std::memcpy(&x, at, sizeof x);  // a NumPy array may be unaligned
  return x;
}

inline const char* chunk_data(const Columns& a, const Chunk& c) {
  return a.data + c.row * a.row_stride + c.column * a.column_stride;
}

inline bool chunk_is_contiguous(const Columns& a, const Chunk& c, int64_t size) {
  return a.column_stride == size && (a.row_stride == c.columns * size || c.rows == 1);
}

// As T or wider.
template <class T, class To>
FASTRL_INLINE void stage_chunk(const Columns& a, const Chunk& c, To* x) {
  const char* at = chunk_data(a, c);
  const auto size = static_cast<int64_t>(sizeof(T));
  if (chunk_is_contiguous(a, c, size)) {
    for (int64_t i = 0; i < c.size(); ++i) x[i] = load_item<T>(at + i * size);
    return;
  }
  for (int64_t r = 0; r < c.rows; ++r, at += a.row_stride)
    for (int64_t j = 0; j < c.columns; ++j) *x++ = load_item<T>(at + j * a.column_stride);
}

// out[row] = `first` and its terms; `carry` is the sum of the columns before.
template <class T>
FASTRL_INLINE void put_row_sums(const double* term, const Chunk& c, int64_t columns, double first, double& carry,
                                T* out) {
  int64_t r = 0;
  for (; c.columns == columns && r + 4 <= c.rows; r += 4) {  // together: the additions of one wait for each other
    const double *const a = term + r * columns, *const b = a + columns, *const d = b + columns, *const e = d + columns;
    double sums[4] = {first, first, first, first};
    for (int64_t j = 0; j < columns; ++j) sums[0] += a[j], sums[1] += b[j], sums[2] += d[j], sums[3] += e[j];
    for (int64_t i = 0; i < 4; ++i) out[c.row + r + i] = static_cast<T>(sums[i]);
  }
  for (; r < c.rows; ++r) {
    double sum = c.column ? carry : first;
    for (int64_t j = 0; j < c.columns; ++j) sum += term[r * c.columns + j];
    carry = sum;
    if (c.column + c.columns == columns) out[c.row + r] = static_cast<T>(sum);
  }
}

// total[column] += the sum over the rows, by pieces.
template <class T>
FASTRL_INLINE void add_to_sums(const T* g, const Chunk& c, int64_t columns, double* sums) {
  double* const total = sums + c.row / kPieceRows * columns + c.column;
  for (int64_t j = 0; j < c.columns; ++j) {
    double sum = total[j];
    for (int64_t r = 0; r < c.rows; ++r) sum += static_cast<double>(g[r * c.columns + j]);
    total[j] = sum;
  }
}

}  // namespace fastrl
