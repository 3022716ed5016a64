// The storage of a replay buffer: one ring of transitions per environment, side by side, with each observation kept
// once where the next transition starts from the one that the last reached.
//
// Transition k of environment e is in slot k mod `slots`, row slot * envs + e, its next observation one slot on; the
// newest one's is in the slot of the cursor, which therefore holds no transition. Rows of one slot more at the end
// repeat those of slot 0 for the last slot. Where a transition starts from another observation than the last reached,
// the reached one moves out of its way into an `extra`.
//
// Where an observation is a stack of k frames, a row has its newest one alone and `depth` says how many of the k - 1
// before it are in the rows before; those that are older repeat the oldest of these, as after a reset, or are the
// `head` of its row. A transition is held only while all of its frames are.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <unordered_map>
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
  uint8_t* depth;                         // [slots + 1, envs], or null where frames is 1
  int64_t obs_bytes, action_bytes, envs, slots;
  int64_t frames;  // of an observation, each of obs_bytes; 1 without stacks
};

// Observations of a batch that are written: one array of each, at `offset` of a stored frame.
struct ReplayLeaf {
  char* out;  // [B, frames] of `bytes`
  int64_t offset, bytes;
};

// An array of all rows whose windows are copied: rows of `bytes`, `stride` apart; `out` [B, steps] of `bytes`.
struct ReplaySource {
  const char* data;
  char* out;
  int64_t stride, bytes;
};

// [steps, envs] of the environments from `first` on, contiguous; mask and episode_start may be null.
struct ReplaySteps {
  int64_t first, envs;
  const char *obs, *action;  // obs and next_obs: `frames` each, the newest last
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

  // The first item whose next_obs is not its obs shifted by one frame, or -1.
  int64_t unshifted(const char* obs, const char* next_obs, const uint8_t* mask, int64_t n) const;

  // The number k * envs + e of each transition; and the next observation of each of `last` whose own is an extra, which
  // no row has. Not for stacks.
  void finish(const int64_t* rows, const int64_t* last, int64_t n, int64_t* numbers,
              const std::vector<ReplayLeaf>& next_obs) const;

  // The stacks of items [begin, end): the observations of `rows` and those that `last` reached; and numbers.
  void stacks(const int64_t* rows, const int64_t* last, int64_t begin, int64_t end, int64_t* numbers,
              const std::vector<ReplayLeaf>& obs, const std::vector<ReplayLeaf>& next_obs) const;

  // How many of the `steps` transitions from `row` on there are: to the end of the episode, a cut or the newest one.
  // mask and discount [steps] say where, and gamma (1 - terminated) there.
  int64_t window(int64_t row, int64_t steps, float gamma, uint8_t* mask, float* discount) const;

  // Copies windows of these lengths, and zeros up to `steps`.
  void copy_windows(const ReplaySource& source, const int64_t* rows, const int64_t* lengths, int64_t n,
                    int64_t steps) const;

  // Puts those next observations [n, steps] of windows right that are extras.
  void finish_windows(const int64_t* rows, const int64_t* lengths, int64_t n, int64_t steps,
                      const std::vector<ReplayLeaf>& next_obs) const;

  int64_t number(int64_t row) const;

  // The row of each number; a row that never holds a transition where it has been overwritten. Returns how many were,
  // or ~b if number b has never been given.
  int64_t locate(const int64_t* numbers, int64_t n, int64_t* rows) const;

  int64_t rows() const { return c_.slots * c_.envs; }
  const char* extra(int64_t row) const { return has_extra(row) ? extras_[row] : nullptr; }
  void set_extra(int64_t row, const char* obs);    // null: none
  const char* head(int64_t row) const;             // the frames before that of the row, oldest first; or null
  void set_head(int64_t row, const char* frames);  // null: none

 private:
  bool has_extra(int64_t row) const { return marks_[row / 64] >> row % 64 & 1; }
  int64_t window_length(int64_t slot, int64_t e, int64_t steps) const;
  int64_t back(int64_t row, int64_t steps) const;  // the row so many slots before, less than `slots`
  const char* older_frame(int64_t row, int64_t age) const;
  void stack(int64_t row, const char* obs, bool follows);

  ReplayColumns c_;
  std::vector<uint64_t> marks_;  // a bit a row: small enough to stay in the cache
  char** extras_;                // [rows]; from calloc, which touches no page
  std::unordered_map<int64_t, std::unique_ptr<char[]>> heads_;
  int64_t continuing_ = 0, differing_ = 0;
  bool reported_ = false;
};

}  // namespace fastrl
