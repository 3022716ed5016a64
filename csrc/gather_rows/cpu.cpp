#include "gather_rows/gather_rows.h"

#include <cstring>

namespace fastrl {
namespace {

// Rows ahead to ask memory for: random rows of a large buffer miss every cache, and the misses should overlap.
constexpr int64_t kAhead = 8;

template <int64_t kBytes>
void gather_fixed(const RowSource& s, const int64_t* indices, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) std::memcpy(s.out + i * kBytes, s.data + indices[i] * s.row_stride, kBytes);
}

void gather_long(const RowSource& s, const int64_t* indices, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
#if defined(__GNUC__)
    if (i + kAhead < end) {
      const char* row = s.data + indices[i + kAhead] * s.row_stride;
      // Two lines: the processor's own prefetcher takes over in a longer row.
      __builtin_prefetch(row);
      __builtin_prefetch(row + (s.row_bytes < 64 ? s.row_bytes - 1 : 64));
    }
#endif
    std::memcpy(s.out + i * s.row_bytes, s.data + indices[i] * s.row_stride, static_cast<size_t>(s.row_bytes));
  }
}

char* copy_strided(const char* from, char* to, int ndim, const int64_t* shape, const int64_t* strides,
                   int64_t itemsize) {
  if (ndim == 0) {
    std::memcpy(to, from, static_cast<size_t>(itemsize));
    return to + itemsize;
  }
  for (int64_t i = 0; i < shape[0]; ++i)
    to = copy_strided(from + i * strides[0], to, ndim - 1, shape + 1, strides + 1, itemsize);
  return to;
}

}  // namespace

void gather_rows(const RowSource& s, const int64_t* indices, int64_t begin, int64_t end) {
  if (s.row_bytes == 0) return;
  if (!s.contiguous_rows) {
    for (int64_t i = begin; i < end; ++i)
      copy_strided(s.data + indices[i] * s.row_stride, s.out + i * s.row_bytes, s.ndim, s.shape, s.strides, s.itemsize);
    return;
  }
  switch (s.row_bytes) {
    case 1:
      return gather_fixed<1>(s, indices, begin, end);
    case 2:
      return gather_fixed<2>(s, indices, begin, end);
    case 4:
      return gather_fixed<4>(s, indices, begin, end);
    case 8:
      return gather_fixed<8>(s, indices, begin, end);
    case 16:
      return gather_fixed<16>(s, indices, begin, end);
    default:
      return gather_long(s, indices, begin, end);
  }
}

}  // namespace fastrl
