#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/discount.h"
#include "core/levels.h"
#include "core/parallel.h"
#include "scans/scans.h"
#include "scans/tiles.h"

namespace fastrl {
namespace {

constexpr int64_t kNStepColumns = 256;

// Windows up to this length are summed step by step; longer ones from two parts, at one cost whatever their length.
constexpr int64_t kShortWindow = 6;

struct NStepRows {
  double gamma, gamma_n;      // gamma_n: the factor of V' behind a whole window
  int64_t n, window;          // window: rewards of a whole one: n, or fewer where gamma^window is 0
  int64_t longest;            // a step with more steps than this to the end of its segment has a whole window
  std::vector<double> power;  // gamma^0 .. gamma^window, where windows are made of two parts
};

// Some environments side by side. run: steps to the end of the segment, from the step after on; tail, discount: the
// return and the factor of V' to that end. Whole windows cost O(1) a step, without a subtraction: time is cut, from its
// end, into blocks of one window's length; the window from step t on is the rest of the block of t, and `ahead`, the
// beginning of the next one, which waits where `last` will be written.
template <class T>
struct NStepStrip {
  const NStepRows& op;
  const ScanData& d;
  int64_t n0, columns;
  bool direct;  // whether the results can be written where they go
  const T *r, *nv;
  int64_t r_stride, nv_stride;
  int64_t begin;       // of the block of the latest step
  bool ready = false;  // whether that block has been prepared
  double run[kNStepColumns], tail[kNStepColumns], discount[kNStepColumns], window[kNStepColumns], rest[kNStepColumns];

  FASTRL_INLINE char* at(const ScanArray& x, int64_t t) const { return x.data + t * x.row + n0 * x.column; }

  // Whether a segment goes on from this row for more than `longest` steps.
  FASTRL_INLINE bool has_longer(const uint8_t* code) const {
    const int64_t m = columns;
    double most = 1;
    for (int64_t i = 0; i < m; ++i) most = std::max(most, code[i] & kContinues ? run[i] + 1.0 : 1.0);
    return most > static_cast<double>(op.longest);
  }

  // The whole windows from step t on, reward by reward.
  FASTRL_INLINE void sum_window(int64_t t) {
    const T* const value = nv + (t + op.window - 1) * nv_stride;
    const double gamma = op.gamma, weight = op.gamma_n != 0 ? gamma : 0.0;
    const int64_t m = columns;
    for (int64_t i = 0; i < m; ++i) window[i] = times(weight, static_cast<double>(value[i]));
    for (int64_t k = op.window - 1; k > 0; --k) {
      const T* const reward = r + (t + k) * r_stride;
      for (int64_t i = 0; i < m; ++i) window[i] = times(gamma, static_cast<double>(reward[i]) + window[i]);
    }
    const T* const reward = r + t * r_stride;
    for (int64_t i = 0; i < m; ++i) window[i] += static_cast<double>(reward[i]);
  }

  FASTRL_INLINE static double load_item(const char* from) {
    double x;
    std::memcpy(&x, from, sizeof x);
    return x;
  }

  FASTRL_INLINE void add_to_rest(int64_t t) {
    const T* const reward = r + t * r_stride;
    const double gamma = op.gamma;
    const int64_t m = columns;
    for (int64_t i = 0; i < m; ++i) rest[i] = static_cast<double>(reward[i]) + times(gamma, rest[i]);
  }

  // `ahead` for the steps of the block up to `until`, and `rest` behind it.
  FASTRL_INLINE void prepare(int64_t until) {
    ready = true;
    std::fill_n(rest, columns, 0.0);
    for (int64_t t = begin + op.window - 1; t > until; --t) add_to_rest(t);
    double sum[kNStepColumns], ahead[kNStepColumns];
    std::fill_n(sum, columns, 0.0);
    for (int64_t t = begin; t <= until; ++t) {
      const int64_t k = t - begin, last = t + op.window - 1;
      const T *const reward = r + last * r_stride, *const value = nv + last * nv_stride;
      const double before = k > 0 ? op.power[k - 1] : 0.0, weight = op.gamma_n != 0 ? op.power[k] : 0.0;
      const int64_t m = columns;
      for (int64_t i = 0; k > 0 && i < m; ++i) sum[i] += before * static_cast<double>(reward[i]);
      if (t < 0) continue;
      for (int64_t i = 0; i < m; ++i) ahead[i] = sum[i] + times(weight, static_cast<double>(value[i]));
      char* const to = at(d.out[2], t);
      for (int64_t i = 0; i < m; ++i) std::memcpy(to + i * d.out[2].column, &ahead[i], sizeof(double));
    }
  }

  // The whole windows from step t on, from their two parts, if they are wanted. To be called for every t.
  FASTRL_INLINE void join_window(int64_t t, bool wanted) {
    if (t < begin) begin -= op.window, ready = false;
    if (wanted && !ready) prepare(t);
    if (!ready) return;
    add_to_rest(t);
    if (!wanted) return;
    const double factor = op.power[op.window - (t - begin)];
    const char* const from = at(d.out[2], t);
    const int64_t m = columns, step = d.out[2].column;
    if (step == sizeof(double)) {
      for (int64_t i = 0; i < m; ++i) window[i] = rest[i] + times(factor, load_item(from + i * sizeof(double)));
    } else {
      for (int64_t i = 0; i < m; ++i) window[i] = rest[i] + times(factor, load_item(from + i * step));
    }
  }

  FASTRL_INLINE void row(int64_t t, const uint8_t* code, T* returns, T* discounts, int64_t* last) {
    const double n = static_cast<double>(op.n), longest = static_cast<double>(op.longest);
    const double now = static_cast<double>(t), gamma = op.gamma, gamma_n = op.gamma_n;
    const T *const rewards = r + t * r_stride, *const values = nv + t * nv_stride;
    double *const tails = tail, *const discounts_after = discount, *const runs = run;
    const double* const windows = window;
    const int64_t m = columns;  // which the stores to `last` cannot change
    FASTRL_INDEPENDENT
    for (int64_t i = 0; i < m; ++i) {
      // Everything is read before anything is chosen: a load behind a condition does not vectorise.
      const int32_t c = code[i];
      const double value = static_cast<double>(values[i]), reward = static_cast<double>(rewards[i]);
      const double tail_after = tails[i], discount_after = discounts_after[i], run_after = runs[i];
      const double in_window = windows[i];
      const double beyond = c & kContinues ? tail_after : value;
      const double bootstrap = c & kBootstraps ? gamma : 0.0;
      const double whole = reward + times(bootstrap, beyond);
      const double factor = bootstrap * (c & kContinues ? discount_after : 1.0);
      const double steps = 1.0 + (c & kContinues ? run_after : 0.0);
      tails[i] = whole, discounts_after[i] = factor, runs[i] = steps;
      returns[i] = static_cast<T>(steps > longest ? in_window : whole);
      discounts[i] = static_cast<T>(steps > longest ? gamma_n : factor);
      last[i] = static_cast<int64_t>(now + (steps > n ? n : steps) - 1.0);
    }
  }
};

// Steps end - 1 .. first, whose codes begin at `code`.
template <class T>
FASTRL_INLINE void n_step_rows(NStepStrip<T>& strip, int64_t first, int64_t end, const uint8_t* code) {
  T room[2][kNStepColumns];
  int64_t index_room[kNStepColumns];
  const ScanData& d = strip.d;
  const int64_t columns = strip.columns, window = strip.op.window;
  for (int64_t t = end - 1; t >= first; --t) {
    T* const returns = strip.direct ? reinterpret_cast<T*>(strip.at(d.out[0], t)) : room[0];
    T* const discounts = strip.direct ? reinterpret_cast<T*>(strip.at(d.out[1], t)) : room[1];
    int64_t* const last = strip.direct ? reinterpret_cast<int64_t*>(strip.at(d.out[2], t)) : index_room;
    const uint8_t* const codes = code + (t - first) * columns;
    const bool wanted = t + window <= d.T && strip.has_longer(codes);
    if (window > kShortWindow)
      strip.join_window(t, wanted);
    else if (wanted)
      strip.sum_window(t);
    strip.row(t, codes, returns, discounts, last);
    if (d.mask.data) {
      const char* const mask = strip.at(d.mask, t);
      for (int64_t i = 0; i < columns; ++i)
        if (!mask[i * d.mask.column]) returns[i] = discounts[i] = T(0), last[i] = t;
    }
    for (int64_t i = 0; !strip.direct && i < columns; ++i) {
      std::memcpy(strip.at(d.out[0], t) + i * d.out[0].column, &returns[i], sizeof(T));
      std::memcpy(strip.at(d.out[1], t) + i * d.out[1].column, &discounts[i], sizeof(T));
      std::memcpy(strip.at(d.out[2], t) + i * d.out[2].column, &last[i], sizeof(int64_t));
    }
  }
}

}  // namespace

template <class T>
void n_step_returns(const ScanData& d, double gamma, int64_t n, Threads threads) {
  if (d.T == 0 || d.N == 0) return;
  NStepRows op{gamma, 0.0, std::min(n, d.T), std::min(n, d.T), std::min(n, d.T), {}};
  op.gamma_n = std::pow(gamma, static_cast<double>(op.n));
  if (static_cast<T>(op.gamma_n) == 0) {
    op.gamma_n = 0;
    op.window = discount_reach(gamma, std::is_same<T, double>::value, op.n);
    op.longest = op.window - 1;
  }
  if (op.window > kShortWindow && op.longest < d.T) {
    op.power.assign(op.window + 1, 1.0);
    for (int64_t k = 1; k <= op.window; ++k) op.power[k] = gamma * op.power[k - 1];
  }
  const bool no_values = !d.in[1].data;
  const bool staged = !in_place<T>(d.in[0], false) || (!no_values && !in_place<T>(d.in[1], false));
  const bool direct =
      in_place<T>(d.out[0], false) && in_place<T>(d.out[1], false) && in_place<int64_t>(d.out[2], false);
  const int64_t width = std::min(d.N, staged ? kStagedColumns : kNStepColumns), rows = kTileItems / width;
  const auto stride = [&](const ScanArray& x, int64_t columns) {
    return staged ? columns : x.row / static_cast<int64_t>(sizeof(T));
  };
  parallel_for((d.N + width - 1) / width, threads, [&](int64_t begin, int64_t end) {
    std::vector<T> rewards, values, zeros(no_values ? width : 0);  // whole columns, because a window looks ahead
    if (staged) rewards.resize(d.T * width), values.resize(no_values ? 0 : d.T * width);
    uint8_t code[kTileItems];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n0 = i * width, columns = std::min(width, d.N - n0);
      if (staged) stage<T, true>(d.in[0], 0, n0, d.T, columns, rewards.data(), columns);
      if (staged && !no_values) stage<T, true>(d.in[1], 0, n0, d.T, columns, values.data(), columns);
      const auto from = [&](const ScanArray& x, const std::vector<T>& copy) {
        return staged ? copy.data() : reinterpret_cast<const T*>(x.data + n0 * x.column);
      };
      NStepStrip<T> strip{op,
                          d,
                          n0,
                          columns,
                          direct,
                          from(d.in[0], rewards),
                          no_values ? zeros.data() : from(d.in[1], values),
                          stride(d.in[0], columns),
                          no_values ? 0 : stride(d.in[1], columns),
                          d.T};
      for (double* x : {strip.run, strip.tail, strip.discount, strip.window}) std::fill_n(x, columns, 0.0);
      for (int64_t t1 = d.T; t1 > 0; t1 -= std::min(t1, rows)) {
        const int64_t t0 = std::max<int64_t>(t1 - rows, 0);
        codes_of_tile(d, t0, n0, t1 - t0, columns, kBootstraps | kContinues, code);
        at_level<n_step_rows<T>>(strip, t0, t1, code);
      }
    }
  });
}

template void n_step_returns<float>(const ScanData&, double, int64_t, Threads);
template void n_step_returns<double>(const ScanData&, double, int64_t, Threads);

}  // namespace fastrl
