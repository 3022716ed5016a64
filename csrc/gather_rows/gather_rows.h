// out[b] = source[indices[b]] for rows of any size and any strides.
#pragma once

#include <cstdint>

#include "core/common.h"

namespace fastrl {

// One array: its rows, and where they go. `out` rows are contiguous.
struct RowSource {
  const char* data;
  char* out;
  int64_t row_stride;      // bytes from one row to the next
  int64_t row_bytes;       // bytes of a row, as many as it has in `out`
  bool contiguous_rows;    // else the inner dimensions below are walked
  int ndim;                // of a row
  const int64_t* shape;    // of a row
  const int64_t* strides;  // of a row, bytes
  int64_t itemsize;
};

// Copies rows [begin, end) of the batch of one source. The caller has checked the indices.
void gather_rows(const RowSource& source, const int64_t* indices, int64_t begin, int64_t end);

}  // namespace fastrl
