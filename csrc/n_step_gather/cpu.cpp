#include "n_step_gather/n_step_gather.h"

#include <algorithm>

namespace fastrl {
namespace {

// Items ahead to ask memory for: those of a large ring miss every cache, and the misses should overlap.
constexpr int64_t kAhead = 8;
// Steps of an item to ask for; beyond them the processor's own prefetcher has seen the pattern.
constexpr int64_t kStepsAhead = 16;

// Asks for what the first steps of an item read. Addresses beyond the end of the ring do no harm.
struct Prefetcher {
  Prefetcher(const NStepRing& ring, int64_t n) {
    const RingColumn* const all[] = {&ring.rewards, &ring.terminated, &ring.truncated, &ring.cut, &ring.next_values};
    const int64_t steps = std::min(n, kStepsAhead);
    for (const RingColumn* column : all) {
      if (!column->data) continue;
      // Of contiguous memory the first step, and the last if it is often in another cache line; else every step.
      const int64_t reach = (steps - 1) * column->slot_stride;
      const bool dense = column->slot_stride > -32 && column->slot_stride < 32;
      const int64_t ends = reach < -8 || reach > 8 ? 2 : 1;
      columns[count++] = {*column, dense ? ends : steps, dense ? reach : column->slot_stride};
    }
  }

  FASTRL_INLINE void operator()(int64_t slot, int64_t env) const {
#if defined(__GNUC__)
    for (int c = 0; c < count; ++c) {
      auto address = reinterpret_cast<uintptr_t>(columns[c].column.at(slot, env));
      for (int64_t k = 0; k < columns[c].lines; ++k, address += static_cast<uintptr_t>(columns[c].step))
        __builtin_prefetch(reinterpret_cast<const void*>(address));
    }
#else
    (void)slot, (void)env;
#endif
  }

  struct Column {
    RingColumn column;
    int64_t lines, step;
  };
  Column columns[5];
  int count = 0;
};

template <class T, bool kOneEnv>
int64_t gather(const NStepRing& ring, const NStepBatch& batch, int64_t begin, int64_t end, double* returns,
               double* discounts, int64_t* last, NStepItem* bad) {
  const Prefetcher prefetch(ring, batch.n);
  const auto ahead = [&](int64_t i) {
    const int64_t flat = batch.indices[i], slot = kOneEnv ? flat : flat / ring.envs;
    prefetch(slot, flat - slot * ring.envs);
  };
  for (int64_t i = begin; i < std::min(begin + kAhead, end); ++i) ahead(i);
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) ahead(i + kAhead);
    const int64_t flat = batch.indices[i], slot = kOneEnv ? flat : flat / ring.envs;
    const int64_t env = kOneEnv ? 0 : flat - slot * ring.envs;
    const int64_t steps = steps_to_newest(slot, batch.cursor[env * batch.cursor_step], ring.slots);
    const NStepItem item = n_step_item<T>(ring, slot, env, std::min(steps, batch.n));
    if (item.bad != NStepItem::none) {
      *bad = item;
      return i;
    }
    returns[i] = item.returns;
    discounts[i] = item.discount;
    last[i] = kOneEnv ? item.last : item.last * ring.envs + env;
  }
  return -1;
}

}  // namespace

int64_t n_step_gather(const NStepRing& ring, bool is_double, const NStepBatch& batch, int64_t begin, int64_t end,
                      double* returns, double* discounts, int64_t* last, NStepItem* bad) {
  const auto run = is_double ? (ring.envs == 1 ? gather<double, true> : gather<double, false>)
                             : (ring.envs == 1 ? gather<float, true> : gather<float, false>);
  return run(ring, batch, begin, end, returns, discounts, last, bad);
}

}  // namespace fastrl
