// How the loops of the scans see their arrays: tiles of items side by side, where they lie or copied there, and a code
// a step.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/levels.h"
#include "scans/scans.h"

namespace fastrl {
namespace {

constexpr int64_t kMostLanes = 8;

// A tile of the arrays, small enough for the nearest cache. What is not contiguous along the way is copied to the tile
// first, so a tile then has fewer columns: each of them is a cache line of a batch-major array.
constexpr int64_t kTileItems = 2048, kTileColumns = 2048;
constexpr int64_t kShortRow = 64;
constexpr int64_t kStagedItems = 1024, kStagedColumns = 16;

// The codes of n steps one after the other in memory; the next step of the same environment is `step` items on. A null
// mask is all real, a null cut is none.
FASTRL_INLINE void codes_loop(const uint8_t* terminated, const uint8_t* truncated, const uint8_t* mask,
                              const uint8_t* cut, int64_t step, bool has_next, int64_t n, uint8_t* code) {
  if (!mask && !cut) {
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t term = terminated[i] != 0, trunc = truncated[i] != 0;
      code[i] = static_cast<uint8_t>((term ^ 1) * kBootstraps | ((term | trunc) ^ 1) * kContinues);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t term = terminated[i] != 0, trunc = truncated[i] != 0, valid = mask ? mask[i] != 0 : 1;
      const uint8_t next = has_next ? (mask ? mask[i + step] != 0 : 1) & (cut ? cut[i + step] == 0 : 1) : 0;
      code[i] = static_cast<uint8_t>((term ^ 1) * kBootstraps | (valid & next & ((term | trunc) ^ 1)) * kContinues);
    }
  }
  if (!has_next)
    for (int64_t i = 0; i < n; ++i) code[i] &= kBootstraps;
}

// The codes of a tile. Flags whose rows are not contiguous are copied to `room` first.
void codes_of_tile(const ScanData& d, int64_t t0, int64_t n0, int64_t rows, int64_t columns, uint8_t wanted,
                   uint8_t* code) {
  const ScanArray* all[] = {&d.terminated, &d.truncated, &d.mask, &d.cut};
  uint8_t room[4][kTileItems + kTileColumns];
  const uint8_t* flags[4] = {};
  const int64_t more = t0 + rows < d.T ? 1 : 0;  // a row further, for what the last one is followed by
  const bool along = columns == 1;
  bool flat = true;
  for (int k = 0; k < 4; ++k) {
    const ScanArray& x = *all[k];
    if (!x.data) continue;
    const char* p = x.data + t0 * x.row + n0 * x.column;
    if ((x.row == columns || rows + more == 1) && (x.column == 1 || along)) {
      flags[k] = reinterpret_cast<const uint8_t*>(p);
    } else if (x.column == 1 && columns >= 64) {
      flat = false;  // long rows can be read where they are
    } else {
      flags[k] = room[k];
      const int64_t n_rows = rows + (k < 2 ? 0 : more);
      if (std::abs(x.row) < std::abs(x.column)) {
        for (int64_t n = 0; n < columns; ++n)
          for (int64_t t = 0; t < n_rows; ++t)
            room[k][t * columns + n] = static_cast<uint8_t>(p[t * x.row + n * x.column]);
      } else {
        for (int64_t t = 0; t < n_rows; ++t)
          for (int64_t n = 0; n < columns; ++n)
            room[k][t * columns + n] = static_cast<uint8_t>(p[t * x.row + n * x.column]);
      }
    }
  }
  if (flat) {
    const int64_t inner = (rows - 1 + more) * columns;
    at_level<codes_loop>(flags[0], flags[1], flags[2], flags[3], columns, true, inner, code);
    const auto last = [&](int k) { return flags[k] ? flags[k] + inner : nullptr; };
    at_level<codes_loop>(last(0), last(1), last(2), last(3), 0, false, rows * columns - inner, code + inner);
  }
  for (int64_t t = 0; !flat && t < rows; ++t) {
    const uint8_t* row[4] = {};
    for (int k = 0; k < 4; ++k) {
      if (flags[k])
        row[k] = flags[k] + t * columns;
      else if (all[k]->data)
        row[k] = reinterpret_cast<const uint8_t*>(all[k]->data + (t0 + t) * all[k]->row + n0);
    }
    const bool has_next = t + 1 < rows + more;
    // mask and cut of the next step are a row on, wherever that is.
    const int64_t step_mask = flags[2] ? columns : d.mask.row, step_cut = flags[3] ? columns : d.cut.row;
    const uint8_t* cut = row[3] ? row[3] + step_cut - step_mask : nullptr;
    at_level<codes_loop>(row[0], row[1], row[2], d.mask.data ? cut : row[3], d.mask.data ? step_mask : step_cut,
                         has_next, columns, code + t * columns);
  }
  if (wanted != (kBootstraps | kContinues))
    for (int64_t i = 0; i < rows * columns; ++i) code[i] &= wanted;
}

// Masked steps have the result 0.
template <class T>
void zero_masked(const ScanData& d, int64_t t0, int64_t n0, int64_t rows, int64_t columns, T* out, int64_t stride) {
  for (int64_t t = 0; t < rows; ++t) {
    const char* mask = d.mask.data + (t0 + t) * d.mask.row + n0 * d.mask.column;
    for (int64_t n = 0; n < columns; ++n)
      if (!mask[n * d.mask.column]) out[t * stride + n] = T(0);
  }
}

bool is_aligned(const ScanArray& x, size_t size) {
  return (reinterpret_cast<uintptr_t>(x.data) | static_cast<uint64_t>(x.row)) % size == 0;
}

// Whether the items of a tile can be used where they are: of a row side by side, or along T of a column.
template <class T>
bool in_place(const ScanArray& x, bool along) {
  return (along ? x.row : x.column) == sizeof(T) && is_aligned(x, sizeof(T));
}

// Short rows of known length, from one stride to another.
template <int kColumns, class T>
void copy_rows(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows) {
  for (int64_t t = 0; t < rows; ++t, from += from_stride, to += to_stride)
    for (int n = 0; n < kColumns; ++n) to[n] = from[n];
}
template <class T>
bool copy_short_rows(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
  static_assert(kMostLanes == 8, "rows of 2 to 7");
  using Copy = void (*)(const T*, int64_t, T*, int64_t, int64_t);
  static const Copy copies[] = {copy_rows<2, T>, copy_rows<3, T>, copy_rows<4, T>,
                                copy_rows<5, T>, copy_rows<6, T>, copy_rows<7, T>};
  if (columns < 2 || columns > 7) return false;
  copies[columns - 2](from, from_stride, to, to_stride, rows);
  return true;
}

// Copies a tile [rows, columns] whose rows are `stride` items apart, walking memory in the order of its smaller stride.
template <class T, bool kToTile>
void stage(const ScanArray& x, int64_t t0, int64_t n0, int64_t rows, int64_t columns, T* tile, int64_t stride) {
  char* base = x.data + t0 * x.row + n0 * x.column;
  if (in_place<T>(x, false)) {
    T* const rows_of_x = reinterpret_cast<T*>(base);
    const int64_t row = x.row / static_cast<int64_t>(sizeof(T));
    if (kToTile ? copy_short_rows(rows_of_x, row, tile, stride, rows, columns)
                : copy_short_rows(tile, stride, rows_of_x, row, rows, columns))
      return;
  }
  const auto item = [&](int64_t t, int64_t n) {
    char* p = base + t * x.row + n * x.column;
    T& at = tile[t * stride + n];
    if (kToTile)
      std::memcpy(&at, p, sizeof(T));
    else
      std::memcpy(p, &at, sizeof(T));
  };
  if (std::abs(x.row) < std::abs(x.column)) {
    for (int64_t n = 0; n < columns; ++n)
      for (int64_t t = 0; t < rows; ++t) item(t, n);
  } else {
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t n = 0; n < columns; ++n) item(t, n);
  }
}

}  // namespace
}  // namespace fastrl
