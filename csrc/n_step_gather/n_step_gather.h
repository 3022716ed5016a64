// n-step returns of single items of a ring buffer.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/common.h"

namespace fastrl {

// An array [slots, envs]; strides in bytes.
struct RingColumn {
  const char* data = nullptr;
  int64_t slot_stride = 0;
  int64_t env_stride = 0;

  FASTRL_HD const char* at(int64_t slot, int64_t env) const { return data + slot * slot_stride + env * env_stride; }
};

struct RingFlags : RingColumn {
  unsigned largest = 1;  // byte that is a flag: 1, and of bool arrays any

  FASTRL_HD unsigned flag(int64_t slot, int64_t env) const { return *reinterpret_cast<const uint8_t*>(at(slot, env)); }
};

struct NStepRing {
  RingColumn rewards;
  RingColumn next_values;  // data null: the reward part alone
  RingFlags terminated, truncated;
  RingFlags cut;  // data null: none
  int64_t slots, envs;
  double gamma;
  int64_t reach;  // gamma^reach counts as 0: see discount.h
};

// What comes of one item.
struct NStepItem {
  enum Bad : int8_t { none, terminated, truncated, cut };  // the flag that is neither 0 nor 1

  double returns, discount;
  int64_t last;  // slot of the last step; that of the bad flag
  Bad bad;
};

// Steps from `slot` up to and including the newest item, which is in the slot before `cursor`.
FASTRL_HD inline int64_t steps_to_newest(int64_t slot, int64_t cursor, int64_t slots) {
  return cursor > slot ? cursor - slot : cursor - slot + slots;
}

template <class T>
FASTRL_HD inline double load_float(const char* p) {
#if defined(__CUDA_ARCH__)
  return static_cast<double>(*reinterpret_cast<const T*>(p));
#else
  T x;
  std::memcpy(&x, p, sizeof x);  // NumPy arrays need not be aligned
  return static_cast<double>(x);
#endif
}

// returns = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated_{m-1}) V'_{m-1}, of `limit` steps at most.
template <class T>
FASTRL_HD FASTRL_INLINE NStepItem n_step_item(const NStepRing& ring, int64_t slot, int64_t env, int64_t limit) {
  NStepItem item;
  double total = 0, factor = 1;
  unsigned terminated;
  item.bad = NStepItem::none;
  for (int64_t m = 1;; ++m) {
    const double reward = load_float<T>(ring.rewards.at(slot, env));
    total += factor != 0 ? factor * reward : 0.0;  // 0 times x is 0, whatever x
    factor = m < ring.reach ? factor * ring.gamma : 0.0;
    terminated = ring.terminated.flag(slot, env);
    const unsigned truncated = ring.truncated.flag(slot, env);
    if (terminated | truncated) {
      if (truncated > ring.truncated.largest) item.bad = NStepItem::truncated;
      if (terminated > ring.terminated.largest) item.bad = NStepItem::terminated;
      break;
    }
    if (m == limit) break;
    const int64_t next = slot + 1 == ring.slots ? 0 : slot + 1;
    if (ring.cut.data) {
      const unsigned cut = ring.cut.flag(next, env);
      if (cut > ring.cut.largest) {
        item.bad = NStepItem::cut;
        slot = next;
      }
      if (cut) break;
    }
    slot = next;
  }
  item.last = slot;
  item.discount = terminated ? 0.0 : factor;
  if (ring.next_values.data && item.discount != 0)
    total += item.discount * load_float<T>(ring.next_values.at(slot, env));
  item.returns = total;
  return item;
}

// Where the items of a batch start and how far they may go. The caller has checked both.
struct NStepBatch {
  const int64_t* indices;  // slot * envs + env
  const int64_t* cursor;   // of environment e: cursor[e * cursor_step]
  int64_t cursor_step;
  int64_t n;
};

// Results, each contiguous, for items [begin, end); `last` is a flat index. Rewards are float64 or else float32.
// Returns the first item with a flag that is neither 0 nor 1, and in `bad` what it is; else -1.
int64_t n_step_gather(const NStepRing& ring, bool is_double, const NStepBatch& batch, int64_t begin, int64_t end,
                      double* returns, double* discounts, int64_t* last, NStepItem* bad);

}  // namespace fastrl
