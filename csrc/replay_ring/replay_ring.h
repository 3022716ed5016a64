// The storage of a replay buffer: one ring of transitions per environment, side by side, with each observation kept
// once where the next transition starts from the one that the last reached.
//
// Transition k of environment e is in slot k mod `slots`, row slot * envs + e, its next observation one slot on; the
// newest one's is in the slot of the cursor, which therefore holds no transition. Rows of one slot more at the end
// repeat those of slot 0 for the last slot. Where a transition starts from another observation than the last reached,
// the reached one moves out of its way into an `extra`.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "core/common.h"

namespace fastrl {

// Memory of the caller, who keeps it alive.
struct ReplayColumns {
  char* obs;       // [slots + 1, envs] of obs_bytes
  char* next_obs;  // the same, or null: next to `obs`
  char* action;    // [slots + 1, envs] of action_bytes
  float* reward;
  uint8_t *terminated, *truncated, *cut;  // cut: not the continuation of the transition in the slot before
  int64_t* added;                         // [envs] transitions ever
  int64_t* start;                         // [envs] transitions forgotten by `clear`
  int64_t* cursor;                        // [envs] added mod slots
  uint8_t* broken;                        // [envs] the next transition is not a continuation, unless it says so
  int64_t obs_bytes, action_bytes, envs, slots;
};

// [steps, envs], contiguous; mask and episode_start may be null.
struct ReplaySteps {
  const char *obs, *action;
  const float* reward;
  const char* next_obs;
  const uint8_t *terminated, *truncated, *mask, *episode_start;
};

class ReplayRing {
 public:
  explicit ReplayRing(const ReplayColumns& columns);
  ~ReplayRing();
  ReplayRing(const ReplayRing&) = delete;
  ReplayRing& operator=(const ReplayRing&) = delete;

  // Stores the steps in order. rows and priorities [2 * steps * envs] get what the sum tree is to be updated with: for
  // each transition its own row, then the row that now has none. Returns the number n of transitions, or ~n when it is
  // time to say that most observations differ from those reached before.
  int64_t write(const ReplaySteps& items, int64_t steps, double priority, int64_t* rows, double* priorities);

  // The number k * envs + e of each transition; and the next observation of each of `last` whose own is an extra.
  void finish(const int64_t* rows, const int64_t* last, int64_t n, int64_t* numbers, char* next_obs) const;

  // The row of each number; a row that never holds a transition where it has been overwritten. Returns how many were,
  // or ~b if number b has never been given.
  int64_t locate(const int64_t* numbers, int64_t n, int64_t* rows) const;

  int64_t rows() const { return c_.slots * c_.envs; }
  const char* extra(int64_t row) const { return has_extra(row) ? extras_[row] : nullptr; }
  void set_extra(int64_t row, const char* obs);  // null: none

 private:
  bool has_extra(int64_t row) const { return marks_[row / 64] >> row % 64 & 1; }

  ReplayColumns c_;
  std::vector<uint64_t> marks_;  // a bit a row: small enough to stay in the cache
  char** extras_;                // [rows]; from calloc, which touches no page
  int64_t continuing_ = 0, differing_ = 0;
  bool reported_ = false;
};

}  // namespace fastrl
