#include "scans/scans.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/lanes.h"
#include "core/levels.h"
#include "core/parallel.h"

#if FASTRL_X86_LEVELS
#include <immintrin.h>
#endif

namespace fastrl {
namespace {

// One environment is scanned along T, in vectors of steps; more are scanned side by side, serially in time. Measured at
// 2048 steps with AVX-512: 6 us for one, 16 us for eight side by side; two to seven, which are copied to rows of eight
// first, take 37 us, and one after the other along T would take 14 us each.
constexpr int64_t kWide = 2;
constexpr int64_t kMostLanes = 8;

// A tile of the arrays, small enough for the nearest cache. What is not contiguous along the way is copied to the tile
// first, so a tile then has fewer columns: each of them is a cache line of a batch-major array.
constexpr int64_t kTileItems = 2048, kTileColumns = 2048;
constexpr int64_t kShortRow = 64;
constexpr int64_t kStagedItems = 1024, kStagedColumns = 16;

template <class T>
struct Tile {
  int64_t rows, columns;
  const T* in[kMaxScanInputs] = {};
  T* out[kMaxScanOutputs] = {};
  int64_t in_stride[kMaxScanInputs], out_stride[kMaxScanOutputs];  // items from row to row
  const uint8_t* code;                                             // [rows, columns], contiguous
};

// ---------------------------------------------------------------- the two ways to run a recurrence

// Sums over time are float64. Where a_t is constant, the terms of one step of float32 arrays are float32, which is what
// their own rounding is worth, and twice as fast.
template <class Op, class T>
constexpr bool kMixed = Op::kConstant && std::is_same<T, float>::value;

#define FASTRL_LEVEL 1
#define FASTRL_TARGET
namespace v1 {
#include "scans/loops.inl"
}
#undef FASTRL_TARGET
#undef FASTRL_LEVEL

#if FASTRL_X86_LEVELS && FASTRL_LANES
#define FASTRL_LEVEL 3
#define FASTRL_TARGET FASTRL_TARGET_3
namespace v3 {
#include "scans/loops.inl"
}
#undef FASTRL_TARGET
#undef FASTRL_LEVEL

#define FASTRL_LEVEL 4
#define FASTRL_TARGET FASTRL_TARGET_4
namespace v4 {
#include "scans/loops.inl"
}
#undef FASTRL_TARGET
#undef FASTRL_LEVEL

template <class Op, class T>
void scan_rows(const Op& op, const Tile<T>& tile, double* y) {
  at_level<v1::scan_rows<Op, T>, v3::scan_rows<Op, T>, v4::scan_rows<Op, T>>(op, tile, y);
}
template <class Op, class T>
double scan_steps(const Op& op, const Tile<T>& tile, double y) {
  return at_level<v1::scan_steps<Op, T>, v3::scan_steps<Op, T>, v4::scan_steps<Op, T>>(op, tile, y);
}
// How many doubles the loops take side by side.
int64_t lanes_here() { return kLevel >= 4 ? v4::kLanes : kLevel >= 3 ? v3::kLanes : 1; }
#else
using v1::scan_rows;
using v1::scan_steps;
int64_t lanes_here() { return 1; }
#endif

// ---------------------------------------------------------------- tiles

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

// One tile after the other: takes in what is not in place, runs `body`, brings out the results.
template <class Op, class T>
class Tiler {
 public:
  Tiler(const Op& op, const ScanData& d, bool along) : d_(d), padded_(!along && d.N < lanes_here()) {
    wanted_ = static_cast<uint8_t>((op.gamma != 0 ? kBootstraps : 0) | (op.continuation != 0 ? kContinues : 0));
    for (int i = 0; i < Op::kInputs; ++i) staged_ |= staged_in_[i] = padded_ || !in_place<T>(d.in[i], along);
    for (int i = 0; i < Op::kOutputs; ++i) staged_ |= staged_out_[i] = padded_ || !in_place<T>(d.out[i], along);
  }

  bool staged() const { return staged_; }

  template <class Body>
  FASTRL_INLINE void run(int64_t t0, int64_t rows, int64_t n0, int64_t columns, const Body& body) {
    alignas(64) uint8_t code[kTileItems];
    alignas(64) T room[Op::kInputs + Op::kOutputs][kStagedItems];
    Tile<T> tile;
    const int64_t stride = padded_ ? lanes_here() : columns;
    tile.rows = rows, tile.columns = stride, tile.code = code;
    if (d_.terminated.data) codes_of_tile(d_, t0, n0, rows, columns, wanted_, code);
    if (padded_) {  // the columns that are not there: zeros, whose results nobody takes
      for (int64_t t = d_.terminated.data ? rows - 1 : -1; t >= 0; --t)
        for (int64_t n = stride - 1; n >= 0; --n) code[t * stride + n] = n < columns ? code[t * columns + n] : 0;
      for (int i = 0; i < Op::kInputs; ++i) std::fill_n(room[i], rows * stride, T(0));
    }
    for (int i = 0; i < Op::kInputs; ++i) {
      const ScanArray& x = d_.in[i];
      if (staged_in_[i]) stage<T, true>(x, t0, n0, rows, columns, room[i], stride);
      tile.in[i] = staged_in_[i] ? room[i] : reinterpret_cast<const T*>(x.data + t0 * x.row + n0 * x.column);
      tile.in_stride[i] = staged_in_[i] ? stride : x.row / static_cast<int64_t>(sizeof(T));
    }
    for (int i = 0; i < Op::kOutputs; ++i) {
      const ScanArray& x = d_.out[i];
      T* here = room[Op::kInputs + i];
      tile.out[i] = staged_out_[i] ? here : reinterpret_cast<T*>(x.data + t0 * x.row + n0 * x.column);
      tile.out_stride[i] = staged_out_[i] ? stride : x.row / static_cast<int64_t>(sizeof(T));
    }
    body(tile);
    for (int i = 0; i < Op::kOutputs && d_.mask.data; ++i)
      zero_masked(d_, t0, n0, rows, columns, tile.out[i], tile.out_stride[i]);
    for (int i = 0; i < Op::kOutputs; ++i)
      if (staged_out_[i]) stage<T, false>(d_.out[i], t0, n0, rows, columns, tile.out[i], stride);
  }

 private:
  const ScanData& d_;
  bool padded_;
  uint8_t wanted_;
  bool staged_ = false, staged_in_[Op::kInputs], staged_out_[Op::kOutputs];
};

template <class T>
double last_of(const ScanData& d, int64_t n) {
  if (!d.last.data) return d.last_value;
  T value;
  std::memcpy(&value, d.last.data + n * d.last.column, sizeof value);
  return value;
}

template <class T, class Op>
void run_scan(const Op& op, const ScanData& d, int threads) {
  if (d.T == 0 || d.N == 0) return;
  const bool along = d.N < kWide;
  Tiler<Op, T> tiler(op, d, along);
  const int64_t columns = along ? 1 : std::min(d.N, tiler.staged() ? kStagedColumns : kTileColumns);
  const int64_t items = along || tiler.staged() ? kStagedItems : kTileItems;
  const int64_t rows = std::max<int64_t>(items / (along ? 1 : std::max(columns, kMostLanes)), 1);
  parallel_for((d.N + columns - 1) / columns, threads, [&](int64_t begin, int64_t end) {
    Tiler<Op, T> own = tiler;
    alignas(64) double y[kTileColumns];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n0 = i * columns, width = std::min(columns, d.N - n0);
      for (int64_t n = 0; n < width; ++n) y[n] = last_of<T>(d, n0 + n);
      for (int64_t n = width; n < kMostLanes; ++n) y[n] = 0;
      for (int64_t t1 = d.T; t1 > 0; t1 -= std::min(t1, rows)) {
        const int64_t t0 = std::max<int64_t>(t1 - rows, 0);
        own.run(t0, t1 - t0, n0, width, [&](const Tile<T>& tile) {
          if (along)
            y[0] = scan_steps(op, tile, y[0]);
          else
            scan_rows(op, tile, y);
        });
      }
    }
  });
}

// ---------------------------------------------------------------- n-step returns

constexpr int64_t kNStepColumns = 256;

struct NStepRows {
  double gamma, gamma_n;
  int64_t n;
};

// One step of `columns` environments. run: steps to the end of the segment, from this one on; tail, discount: the
// return and the factor of V' to that end. Where the window of n steps ends before it, the return is summed anew.
template <class T>
FASTRL_INLINE void n_step_loop(const NStepRows& op, int64_t t, int64_t columns, const T* r, int64_t r_stride,
                               const T* nv, int64_t nv_stride, bool whole_window, const uint8_t* code, double* run,
                               double* tail, double* discount, double* sum, T* returns, T* discounts, int64_t* last) {
  double longest = 0;
  for (int64_t i = 0; i < columns; ++i) longest = std::max(longest, code[i] & kContinues ? run[i] + 1.0 : 1.0);
  if (whole_window && longest > static_cast<double>(op.n)) {  // else no window ends inside a segment
    const T* value = nv + (op.n - 1) * nv_stride;
    for (int64_t i = 0; i < columns; ++i) sum[i] = times(op.gamma, static_cast<double>(value[i]));
    for (int64_t k = op.n - 1; k > 0; --k) {
      const T* reward = r + k * r_stride;
      for (int64_t i = 0; i < columns; ++i) sum[i] = times(op.gamma, static_cast<double>(reward[i]) + sum[i]);
    }
    for (int64_t i = 0; i < columns; ++i) sum[i] += static_cast<double>(r[i]);
  }
  const double n = static_cast<double>(op.n), now = static_cast<double>(t), gamma = op.gamma, gamma_n = op.gamma_n;
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < columns; ++i) {
    // Everything is read before anything is chosen: a load behind a condition does not vectorise.
    const int32_t c = code[i];
    const double value = static_cast<double>(nv[i]), reward = static_cast<double>(r[i]), window = sum[i];
    const double tail_after = tail[i], discount_after = discount[i], run_after = run[i];
    const double beyond = c & kContinues ? tail_after : value;
    const double bootstrap = c & kBootstraps ? gamma : 0.0;
    const double whole = reward + times(bootstrap, beyond);
    const double factor = bootstrap * (c & kContinues ? discount_after : 1.0);
    const double steps = 1.0 + (c & kContinues ? run_after : 0.0);
    tail[i] = whole, discount[i] = factor, run[i] = steps;
    returns[i] = static_cast<T>(steps > n ? window : whole);
    discounts[i] = static_cast<T>(steps > n ? gamma_n : factor);
    last[i] = static_cast<int64_t>(now + (steps > n ? n : steps) - 1.0);
  }
}

}  // namespace

template <class T>
void n_step_returns(const ScanData& d, double gamma, int64_t n, int threads) {
  if (d.T == 0 || d.N == 0) return;
  NStepRows op{gamma, 1.0, std::min(n, d.T)};
  op.gamma_n = std::pow(gamma, static_cast<double>(op.n));
  const bool no_values = !d.in[1].data;
  const bool staged = !in_place<T>(d.in[0], false) || (!no_values && !in_place<T>(d.in[1], false));
  const bool direct =
      in_place<T>(d.out[0], false) && in_place<T>(d.out[1], false) && in_place<int64_t>(d.out[2], false);
  const int64_t width = std::min(d.N, staged ? kStagedColumns : kNStepColumns), rows = kTileItems / width;
  parallel_for((d.N + width - 1) / width, threads, [&](int64_t begin, int64_t end) {
    std::vector<T> rewards, values, zeros(no_values ? width : 0);  // whole columns, because a window looks ahead
    if (staged) rewards.resize(d.T * width), values.resize(no_values ? 0 : d.T * width);
    double run[kNStepColumns], tail[kNStepColumns], discount[kNStepColumns], sum[kNStepColumns];
    T room[2][kNStepColumns];
    int64_t index_room[kNStepColumns];
    uint8_t code[kTileItems];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n0 = i * width, columns = std::min(width, d.N - n0);
      if (staged) stage<T, true>(d.in[0], 0, n0, d.T, columns, rewards.data(), columns);
      if (staged && !no_values) stage<T, true>(d.in[1], 0, n0, d.T, columns, values.data(), columns);
      for (double* x : {run, tail, discount, sum}) std::fill_n(x, columns, 0.0);
      int64_t first = d.T;  // of the steps whose codes are made
      for (int64_t t = d.T - 1; t >= 0; --t) {
        if (t < first) {
          first = std::max<int64_t>(t + 1 - rows, 0);
          codes_of_tile(d, first, n0, t + 1 - first, columns, kBootstraps | kContinues, code);
        }
        const auto at = [&](const ScanArray& x) { return x.data + t * x.row + n0 * x.column; };
        const auto row = [&](const ScanArray& x, const std::vector<T>& copy) {
          return staged ? copy.data() + t * columns : reinterpret_cast<const T*>(at(x));
        };
        const auto stride = [&](const ScanArray& x) {
          return staged ? columns : x.row / static_cast<int64_t>(sizeof(T));
        };
        T* returns = direct ? reinterpret_cast<T*>(at(d.out[0])) : room[0];
        T* discounts = direct ? reinterpret_cast<T*>(at(d.out[1])) : room[1];
        int64_t* last = direct ? reinterpret_cast<int64_t*>(at(d.out[2])) : index_room;
        at_level<n_step_loop<T>>(op, t, columns, row(d.in[0], rewards), stride(d.in[0]),
                                 no_values ? zeros.data() : row(d.in[1], values), no_values ? 0 : stride(d.in[1]),
                                 t + op.n <= d.T, code + (t - first) * columns, run, tail, discount, sum, returns,
                                 discounts, last);
        if (d.mask.data) {
          const char* mask = d.mask.data + t * d.mask.row + n0 * d.mask.column;
          for (int64_t j = 0; j < columns; ++j)
            if (!mask[j * d.mask.column]) returns[j] = discounts[j] = T(0), last[j] = t;
        }
        for (int64_t j = 0; !direct && j < columns; ++j) {
          const auto put = [&](const ScanArray& x, const void* value, size_t size) {
            std::memcpy(at(x) + j * x.column, value, size);
          };
          put(d.out[0], &returns[j], sizeof(T));
          put(d.out[1], &discounts[j], sizeof(T));
          put(d.out[2], &last[j], sizeof(int64_t));
        }
      }
    }
  });
}

template void n_step_returns<float>(const ScanData&, double, int64_t, int);
template void n_step_returns<double>(const ScanData&, double, int64_t, int);

#define FASTRL_SCAN(Op)                                                       \
  template <class T>                                                          \
  void scan(const Op<double>& op, const ScanData& data, int threads) {        \
    run_scan<T>(op, data, threads);                                           \
  }                                                                           \
  template void scan<float>(const Op<double>&, const ScanData&, int threads); \
  template void scan<double>(const Op<double>&, const ScanData&, int threads);
FASTRL_SCAN(AffineScan)
FASTRL_SCAN(Gae)
FASTRL_SCAN(LambdaReturns)
FASTRL_SCAN(RewardsToGo)
FASTRL_SCAN(VTrace)
FASTRL_SCAN(OffPolicyReturns)
#undef FASTRL_SCAN

int64_t find_bad_flag(const ScanArray& flags, int64_t T, int64_t N) {
  const auto row_is_good = [](const uint8_t* p, int64_t n) {
    uint8_t all = 0;
    for (int64_t i = 0; i < n; ++i) all |= p[i];
    return all <= 1;
  };
  for (int64_t t = 0; t < T; ++t) {
    const char* row = flags.data + t * flags.row;
    if (flags.column == 1 && row_is_good(reinterpret_cast<const uint8_t*>(row), N)) continue;
    for (int64_t n = 0; n < N; ++n)
      if (static_cast<uint8_t>(row[n * flags.column]) > 1) return t * N + n;
  }
  return -1;
}

}  // namespace fastrl
