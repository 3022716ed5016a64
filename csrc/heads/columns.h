// What the rows of the normal heads are made of.
#pragma once

#include "core/common.h"

namespace fastrl {

// An array of the call as [rows, columns] in any strides (bytes); row stride 0 for one of shape [columns].
struct Columns {
  const char* data = nullptr;
  int64_t row_stride = 0, column_stride = 0;
};

// Rows whose sums over a batch are made together.
constexpr int64_t kPieceRows = 1024;

}  // namespace fastrl
