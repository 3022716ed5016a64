#include "scans/scans.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/lanes.h"
#include "core/levels.h"
#include "core/parallel.h"
#include "scans/tiles.h"

#if FASTRL_X86_LEVELS
#include <immintrin.h>
#endif

namespace fastrl {
namespace {

// One environment is scanned along T, in vectors of steps; more are scanned side by side, serially in time. Measured at
// 2048 steps with AVX-512: 6 us for one, 16 us for eight side by side; two to seven, which are copied to rows of eight
// first, take 37 us, and one after the other along T would take 14 us each.
constexpr int64_t kWide = 2;

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
void run_scan(const Op& op, const ScanData& d, Threads threads) {
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

}  // namespace

#define FASTRL_SCAN(Op)                                                           \
  template <class T>                                                              \
  void scan(const Op<double>& op, const ScanData& data, Threads threads) {        \
    run_scan<T>(op, data, threads);                                               \
  }                                                                               \
  template void scan<float>(const Op<double>&, const ScanData&, Threads threads); \
  template void scan<double>(const Op<double>&, const ScanData&, Threads threads);
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
