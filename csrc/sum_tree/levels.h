// The tree's arrays, level by level, and lists of its nodes.
#pragma once

#include <cstring>

#include "core/common.h"
#include "sum_tree/sum_tree.h"

namespace fastrl {

constexpr int kMaxLevels = 9;  // 16^8 > 2^31 leaves
constexpr int64_t kAlign = kTreeAlign;

template <class T>
struct Levels {
  int top;                    // the level of the root; leaves are level 0
  int64_t width[kMaxLevels];  // nodes of a level, padded to whole groups of siblings
  T* leaves;
  double* sums[kMaxLevels];    // [0] unused
  double* prefix[kMaxLevels];  // of the sums, within each group of 16 siblings; [0] and [top] unused
  T* mins[kMaxLevels];
  T* maxs[kMaxLevels];
  uint8_t*
      marks[kMaxLevels];  // a byte a node: on the list of nodes to recompute (bits would wait for each other's stores)
  uint64_t* stale;        // a bit a node of level 1: its mins and maxs, and those above it, are out of date
};

// Which byte of a word, in memory order, is its first that is not 0. Each is 0 or 1.
FASTRL_INLINE int lowest_byte(uint64_t word) {
#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return __builtin_ctzll(word) / 8;
#else
  uint8_t bytes[8];
  std::memcpy(bytes, &word, 8);
  int byte = 0;
  while (!bytes[byte]) ++byte;
  return byte;
#endif
}

// The parents of the nodes in `list`, in place; `sorted` says whether the list is, and the parents then come once each.
// Few nodes of a wide level hardly meet, and recomputing twice costs less than finding the doubles. Else each parent is
// marked by a byte (a bit would wait for its neighbour's store), and the marks, all 0 before and after, are read off in
// order: this sorts the list.
FASTRL_INLINE int64_t parents(int64_t* list, int64_t n, int64_t width, uint8_t* marks, bool& sorted) {
  constexpr int kShift = 4;
  static_assert(1 << kShift == kFanout, "a node's parent is node >> kShift");
  int64_t count = 0;
  if (sorted) {
    int64_t last = -1;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t node = list[i] >> kShift;
      count += node != last;
      list[count - 1] = last = node;
    }
    return count;
  }
  if (n * 4 < width) {
    for (int64_t i = 0; i < n; ++i) list[i] >>= kShift;
    return n;
  }
  for (int64_t i = 0; i < n; ++i) marks[list[i] >> kShift] = 1;
  for (int64_t base = 0; base < width; base += 8) {
    uint64_t word;
    std::memcpy(&word, marks + base, 8);
    if (!word) continue;
    std::memset(marks + base, 0, 8);
    for (; word; word &= word - 1) list[count++] = base + lowest_byte(word);
  }
  sorted = true;
  return count;
}

}  // namespace fastrl
