#include "replay_ring/replay_ring.h"

#include <cstring>
#include <new>

namespace fastrl {
namespace {

constexpr int64_t kWindow = 256;  // continuing transitions after which it is asked whether most observations differ

void copy(char* to, const char* from, int64_t bytes) { std::memcpy(to, from, static_cast<size_t>(bytes)); }

}  // namespace

ReplayRing::ReplayRing(const ReplayColumns& columns)
    : c_(columns),
      marks_(static_cast<size_t>(rows() / 64 + 1)),
      extras_(static_cast<char**>(std::calloc(static_cast<size_t>(rows()), sizeof(char*)))) {
  if (!extras_) throw std::bad_alloc();
}

ReplayRing::~ReplayRing() {
  for (int64_t row = 0; row < rows(); ++row)
    if (has_extra(row)) std::free(extras_[row]);
  std::free(extras_);
}

void ReplayRing::set_extra(int64_t row, const char* obs) {
  if (!obs) {
    if (!has_extra(row)) return;
    std::free(extras_[row]);
    extras_[row] = nullptr;
    marks_[row / 64] &= ~(uint64_t{1} << row % 64);
    return;
  }
  if (!extras_[row]) {
    extras_[row] = static_cast<char*>(std::malloc(static_cast<size_t>(c_.obs_bytes)));
    if (!extras_[row]) throw std::bad_alloc();
  }
  copy(extras_[row], obs, c_.obs_bytes);
  marks_[row / 64] |= uint64_t{1} << row % 64;
}

int64_t ReplayRing::write(const ReplaySteps& items, int64_t steps, double priority, int64_t* rows, double* priorities) {
  const int64_t N = c_.envs;
  int64_t count = 0;
  for (int64_t i = 0; i < steps * N; ++i) {
    const int64_t e = i % N;
    if (items.mask && !items.mask[i]) {
      c_.broken[e] = 1;  // what comes next does not continue what is stored
      continue;
    }
    const int64_t slot = c_.cursor[e], after = slot + 1 == c_.slots ? 0 : slot + 1;
    const int64_t row = slot * N + e, row_after = after * N + e;
    const bool starts = items.episode_start ? items.episode_start[i] : c_.broken[e];
    const char *obs = items.obs + i * c_.obs_bytes, *next_obs = items.next_obs + i * c_.obs_bytes;
    char* own = c_.obs + row * c_.obs_bytes;
    if (c_.next_obs) {
      copy(own, obs, c_.obs_bytes);
      copy(c_.next_obs + row * c_.obs_bytes, next_obs, c_.obs_bytes);
    } else {
      // Compared as bytes, so that NaN equals itself.
      const bool follows = c_.added[e] > c_.start[e];
      const bool same = follows && std::memcmp(own, obs, static_cast<size_t>(c_.obs_bytes)) == 0;
      if (!same) {
        if (follows) set_extra((slot == 0 ? c_.slots - 1 : slot - 1) * N + e, own);
        copy(own, obs, c_.obs_bytes);
      }
      copy(own + N * c_.obs_bytes, next_obs, c_.obs_bytes);
      if (after == 0) copy(c_.obs + e * c_.obs_bytes, next_obs, c_.obs_bytes);
      set_extra(row_after, nullptr);
      if (follows && !starts && !items.episode_start) ++continuing_, differing_ += !same;
    }
    copy(c_.action + row * c_.action_bytes, items.action + i * c_.action_bytes, c_.action_bytes);
    c_.reward[row] = items.reward[i];
    c_.terminated[row] = items.terminated[i];
    c_.truncated[row] = items.truncated[i];
    c_.cut[row] = starts;
    c_.broken[e] = items.terminated[i] || items.truncated[i];
    c_.cursor[e] = after;
    ++c_.added[e];
    rows[2 * count] = row, priorities[2 * count] = priority;
    rows[2 * count + 1] = row_after, priorities[2 * count + 1] = 0;
    ++count;
  }
  if (continuing_ < kWindow || reported_) return count;
  reported_ = 2 * differing_ > continuing_;
  continuing_ = differing_ = 0;
  return reported_ ? ~count : count;
}

void ReplayRing::finish(const int64_t* rows, const int64_t* last, int64_t n, int64_t* numbers, char* next_obs) const {
  const auto N = static_cast<uint32_t>(c_.envs);  // rows are fewer than 2^31, and 32 bits divide faster
  for (int64_t b = 0; b < n; ++b) {
    const auto row = static_cast<uint32_t>(rows[b]);
    const uint32_t slot = N == 1 ? row : row / N, e = row - slot * N;
    const int64_t age = c_.cursor[e] - 1 - slot;  // from the newest, modulo slots
    numbers[b] = (c_.added[e] - 1 - (age < 0 ? age + c_.slots : age)) * N + e;
    if (has_extra(last[b])) copy(next_obs + b * c_.obs_bytes, extras_[last[b]], c_.obs_bytes);
  }
}

int64_t ReplayRing::locate(const int64_t* numbers, int64_t n, int64_t* rows) const {
  const int64_t N = c_.envs;
  int64_t stale = 0;
  for (int64_t b = 0; b < n; ++b) {
    if (numbers[b] < 0) return ~b;
    const int64_t k = N == 1 ? numbers[b] : numbers[b] / N, e = numbers[b] - k * N;
    if (k >= c_.added[e]) return ~b;
    const int64_t age = c_.added[e] - k;  // 1 for the newest
    const bool held = k >= c_.start[e] && age < c_.slots;
    const int64_t slot = c_.cursor[e] - age;
    rows[b] = (!held ? c_.slots : slot < 0 ? slot + c_.slots : slot) * N + e;
    stale += !held;
  }
  return stale;
}

}  // namespace fastrl
