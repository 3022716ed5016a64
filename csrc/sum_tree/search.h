// Searching and repairing the tree by the processor's instruction set.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/levels.h"
#include "sum_tree/levels.h"
#include "sum_tree/node.h"

namespace fastrl {
namespace {

constexpr int kInterleave = 32;  // draws that descend together, so that their cache misses overlap

FASTRL_INLINE void prefetch(const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

#define FASTRL_LEVEL 1
#define FASTRL_TARGET
namespace v1 {
#include "sum_tree/search.inl"
}
#undef FASTRL_TARGET
#undef FASTRL_LEVEL

#if FASTRL_X86_LEVELS
#define FASTRL_LEVEL 3
#define FASTRL_TARGET FASTRL_TARGET_3
namespace v3 {
#include "sum_tree/search.inl"
}
#undef FASTRL_TARGET
#undef FASTRL_LEVEL

#define FASTRL_LEVEL 4
#define FASTRL_TARGET FASTRL_TARGET_4
namespace v4 {
#include "sum_tree/search.inl"
}
#undef FASTRL_TARGET
#undef FASTRL_LEVEL

template <class T>
void find_all(const Levels<T>& tree, double* u, int64_t n, int64_t* out) {
  at_level<v1::find_all<T>, v3::find_all<T>, v4::find_all<T>>(tree, u, n, out);
}
template <class T>
void repair(const Levels<T>& tree, int64_t* list, int64_t n) {
  at_level<v1::repair<T>, v3::repair<T>, v4::repair<T>>(tree, list, n);
}
#else
using v1::find_all;
using v1::repair;
#endif

}  // namespace
}  // namespace fastrl
