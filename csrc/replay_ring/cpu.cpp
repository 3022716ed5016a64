#include "replay_ring/replay_ring.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace fastrl {
namespace {

constexpr int64_t kWindow = 256;  // continuing transitions after which it is asked whether most observations differ

void copy(char* to, const char* from, int64_t bytes) { std::memcpy(to, from, static_cast<size_t>(bytes)); }

template <int64_t kBytes>
void copy_column(char* to, const char* from, int64_t n, int64_t stride) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * kBytes, from + i * stride, kBytes);
}

// n rows of `bytes`, `stride` apart.
void copy_rows(char* to, const char* from, int64_t n, int64_t bytes, int64_t stride) {
  if (bytes == stride) return copy(to, from, n * bytes);
  switch (bytes) {
    case 1:
      return copy_column<1>(to, from, n, stride);
    case 4:
      return copy_column<4>(to, from, n, stride);
    case 8:
      return copy_column<8>(to, from, n, stride);
    default:
      for (int64_t i = 0; i < n; ++i) copy(to + i * bytes, from + i * stride, bytes);
  }
}

uint64_t eight(const uint8_t* flags) {
  uint64_t x;
  std::memcpy(&x, flags, sizeof x);
  return x;
}

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

const char* ReplayRing::head(int64_t row) const {
  const auto found = heads_.find(row);
  return found == heads_.end() ? nullptr : found->second.get();
}

void ReplayRing::set_head(int64_t row, const char* frames) {
  if (!frames) {
    heads_.erase(row);
    return;
  }
  const int64_t bytes = (c_.frames - 1) * c_.obs_bytes;
  auto kept = std::make_unique<char[]>(static_cast<size_t>(bytes));
  copy(kept.get(), frames, bytes);
  heads_[row] = std::move(kept);
}

int64_t ReplayRing::back(int64_t row, int64_t steps) const {
  const int64_t before = row - steps * c_.envs;
  return before < 0 ? before + rows() : before;
}

// The frame `age` steps before that of the row.
const char* ReplayRing::older_frame(int64_t row, int64_t age) const {
  const int64_t depth = c_.depth[row], first = back(row, std::min(age, depth));
  const char* frames = age > depth ? head(first) : nullptr;
  return frames ? frames + (c_.frames - 1 - (age - depth)) * c_.obs_bytes : c_.obs + first * c_.obs_bytes;
}

// Which of the frames of `obs` before its newest, which is stored, are in the rows before.
void ReplayRing::stack(int64_t row, const char* obs, bool follows) {
  const int64_t older = c_.frames - 1;
  const auto bytes = static_cast<size_t>(c_.obs_bytes);
  const int64_t before = back(row, 1);
  bool continues = follows;
  for (int64_t age = 1; continues && age <= older; ++age)
    continues = std::memcmp(obs + (older - age) * c_.obs_bytes, older_frame(before, age - 1), bytes) == 0;
  if (continues) {
    c_.depth[row] = static_cast<uint8_t>(std::min<int64_t>(c_.depth[before] + 1, older));
    return;
  }
  bool padded = true;  // each byte equals that of the frame after
  for (int64_t age = 1; padded && age <= older; ++age)
    padded = std::memcmp(obs + (older - age) * c_.obs_bytes, obs + older * c_.obs_bytes, bytes) == 0;
  c_.depth[row] = 0;
  set_head(row, padded ? nullptr : obs);
}

int64_t ReplayRing::unshifted(const char* obs, const char* next_obs, const uint8_t* mask, int64_t n) const {
  const int64_t item = c_.frames * c_.obs_bytes;
  const auto bytes = static_cast<size_t>(item - c_.obs_bytes);
  for (int64_t i = 0; i < n; ++i)
    if (!(mask && !mask[i]) && std::memcmp(obs + i * item + c_.obs_bytes, next_obs + i * item, bytes) != 0) return i;
  return -1;
}

int64_t ReplayRing::write(const ReplaySteps& items, int64_t steps, double priority, int64_t* rows, double* priorities) {
  const int64_t N = c_.envs;
  int64_t count = 0;
  for (int64_t i = 0; i < steps * items.envs; ++i) {
    const int64_t e = items.first + i % items.envs;
    if (items.mask && !items.mask[i]) {
      c_.broken[e] = 1;  // what comes next does not continue what is stored
      continue;
    }
    const int64_t slot = c_.cursor[e], after = slot + 1 == c_.slots ? 0 : slot + 1;
    const int64_t row = slot * N + e, row_after = after * N + e;
    const int64_t gone = after + c_.frames - 1, row_gone = (gone < c_.slots ? gone : gone - c_.slots) * N + e;
    const bool starts = items.episode_start ? items.episode_start[i] : c_.broken[e];
    const char* stacked = items.obs + i * c_.frames * c_.obs_bytes;
    const char* obs = stacked + (c_.frames - 1) * c_.obs_bytes;
    const char* next_obs = items.next_obs + ((i + 1) * c_.frames - 1) * c_.obs_bytes;
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
      set_extra(row_gone, nullptr);
      if (c_.depth) {
        if (!heads_.empty()) heads_.erase(row_after);
        stack(row, stacked, follows);
      }
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
    rows[2 * count + 1] = row_gone, priorities[2 * count + 1] = 0;
    ++count;
  }
  if (continuing_ < kWindow || reported_) return count;
  reported_ = 2 * differing_ > continuing_;
  continuing_ = differing_ = 0;
  return reported_ ? ~count : count;
}

void ReplayRing::finish(const int64_t* rows, const int64_t* last, int64_t n, int64_t* numbers,
                        const std::vector<ReplayLeaf>& next_obs) const {
  const auto N = static_cast<uint32_t>(c_.envs);  // rows are fewer than 2^31, and 32 bits divide faster
  for (int64_t b = 0; b < n; ++b) {
    const auto row = static_cast<uint32_t>(rows[b]);
    const uint32_t slot = N == 1 ? row : row / N, e = row - slot * N;
    const int64_t age = c_.cursor[e] - 1 - slot;  // from the newest, modulo slots
    numbers[b] = (c_.added[e] - 1 - (age < 0 ? age + c_.slots : age)) * N + e;
    if (has_extra(last[b]))
      for (const ReplayLeaf& leaf : next_obs)
        copy(leaf.out + b * leaf.bytes, extras_[last[b]] + leaf.offset, leaf.bytes);
  }
}

// Both stacks of a transition at once, while the frames that they share are in the cache.
void ReplayRing::stacks(const int64_t* rows, const int64_t* last, int64_t begin, int64_t end, int64_t* numbers,
                        const std::vector<ReplayLeaf>& obs, const std::vector<ReplayLeaf>& next_obs) const {
  const int64_t k = c_.frames;
  std::vector<const char*> frames(static_cast<size_t>(k));
  const auto put = [&](const std::vector<ReplayLeaf>& leaves, int64_t b) {
    for (const ReplayLeaf& leaf : leaves) {
      char* out = leaf.out + b * k * leaf.bytes;
      for (int64_t f = 0, m; f < k; f += m) {
        for (m = 1; f + m < k && frames[f + m] == frames[f] + m * leaf.bytes;) ++m;  // they lie side by side
        copy(out + f * leaf.bytes, frames[f] + leaf.offset, m * leaf.bytes);
      }
    }
  };
  for (int64_t b = begin; b < end; ++b) {
    numbers[b] = number(rows[b]);
    for (int64_t age = 0; age < k; ++age) frames[k - 1 - age] = older_frame(rows[b], age);
    put(obs, b);
    for (int64_t age = 0; age < k - 1; ++age) frames[k - 2 - age] = older_frame(last[b], age);
    frames[k - 1] = has_extra(last[b]) ? extras_[last[b]] : c_.obs + (last[b] + c_.envs) * c_.obs_bytes;
    put(next_obs, b);
  }
}

int64_t ReplayRing::window_length(int64_t slot, int64_t e, int64_t steps) const {
  const int64_t N = c_.envs, cursor = c_.cursor[e];
  const int64_t limit = std::min(steps, cursor > slot ? cursor - slot : cursor - slot + c_.slots);
  int64_t m = 1;
  for (; N == 1 && m + 7 < limit && slot + 8 < c_.slots; m += 8, slot += 8)
    if (eight(c_.terminated + slot) | eight(c_.truncated + slot) | eight(c_.cut + slot + 1)) break;
  for (;; ++m) {
    if (c_.terminated[slot * N + e] || c_.truncated[slot * N + e] || m == limit) return m;
    if (++slot == c_.slots) slot = 0;
    if (c_.cut[slot * N + e]) return m;
  }
}

int64_t ReplayRing::window(int64_t row, int64_t steps, float gamma, uint8_t* mask, float* discount) const {
  const int64_t N = c_.envs, length = window_length(row / N, row % N, steps), last = row + (length - 1) * N;
  std::fill_n(mask, length, uint8_t{1});
  std::fill_n(mask + length, steps - length, uint8_t{0});
  std::fill_n(discount, length, gamma);
  std::fill_n(discount + length, steps - length, 0.0f);
  if (c_.terminated[last < rows() ? last : last - rows()]) discount[length - 1] = 0;  // no other step of it can be
  return length;
}

void ReplayRing::copy_windows(const ReplaySource& s, const int64_t* rows, const int64_t* lengths, int64_t n,
                              int64_t steps) const {
  for (int64_t b = 0; b < n; ++b) {
    char* out = s.out + b * steps * s.bytes;
    const int64_t slot = rows[b] / c_.envs, first = std::min(lengths[b], c_.slots - slot), rest = lengths[b] - first;
    copy_rows(out, s.data + rows[b] * s.stride, first, s.bytes, s.stride * c_.envs);
    if (rest)
      copy_rows(out + first * s.bytes, s.data + rows[b] % c_.envs * s.stride, rest, s.bytes, s.stride * c_.envs);
    std::memset(out + lengths[b] * s.bytes, 0, static_cast<size_t>((steps - lengths[b]) * s.bytes));
  }
}

void ReplayRing::finish_windows(const int64_t* rows, const int64_t* lengths, int64_t n, int64_t steps,
                                const std::vector<ReplayLeaf>& next_obs) const {
  for (int64_t b = 0; b < n; ++b) {
    int64_t row = rows[b];
    for (int64_t t = 0; t < lengths[b];) {
      if (has_extra(row))
        for (const ReplayLeaf& leaf : next_obs)
          copy(leaf.out + (b * steps + t) * leaf.bytes, extras_[row] + leaf.offset, leaf.bytes);
      const uint64_t marks = marks_[row / 64] >> row % 64 >> 1;
      const int64_t rest = std::min(63 - row % 64, this->rows() - 1 - row);  // rows to the end of the word or the ring
      const int64_t free = (marks == 0 ? rest : marks % 256 == 0 ? 8 : 0) / c_.envs;  // more steps without an extra
      t += free + 1, row += (free + 1) * c_.envs;
      if (row >= this->rows()) row -= this->rows();
    }
  }
}

int64_t ReplayRing::number(int64_t row) const {
  const int64_t N = c_.envs, slot = row / N, e = row - slot * N;
  const int64_t age = c_.cursor[e] - 1 - slot;  // from the newest, modulo slots
  return (c_.added[e] - 1 - (age < 0 ? age + c_.slots : age)) * N + e;
}

int64_t ReplayRing::locate(const int64_t* numbers, int64_t n, int64_t* rows) const {
  const int64_t N = c_.envs;
  int64_t stale = 0;
  for (int64_t b = 0; b < n; ++b) {
    if (numbers[b] < 0) return ~b;
    const int64_t k = N == 1 ? numbers[b] : numbers[b] / N, e = numbers[b] - k * N;
    if (k >= c_.added[e]) return ~b;
    const int64_t age = c_.added[e] - k;  // 1 for the newest
    const bool held = k >= c_.start[e] && age <= c_.slots - c_.frames;
    const int64_t slot = c_.cursor[e] - age;
    rows[b] = (!held ? c_.slots : slot < 0 ? slot + c_.slots : slot) * N + e;
    stale += !held;
  }
  return stale;
}

}  // namespace fastrl
