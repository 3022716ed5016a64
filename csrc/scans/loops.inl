// The inner loops of the scans for one instruction set: included once for each FASTRL_LEVEL (1: any; 3, 4: x86-64-v3,
// -v4), inside a namespace of its own. FASTRL_TARGET names the set on every function, because templates do not take it
// from a pragma.

template <class Op, class T>
FASTRL_TARGET FASTRL_INLINE double step_one(const Op& op, const T* const* in, const uint8_t* codes, T* const* out,
                                            int64_t i, double next) {
  using V = std::conditional_t<kMixed<Op, T>, float, double>;
  const uint8_t code = codes[i];
  Inputs<V> x{static_cast<V>(in[0][i]), V{}, V{}, V{}};
  if constexpr (Op::kInputs > 1) x.x1 = in[1][i];
  if constexpr (Op::kInputs > 2) x.x2 = in[2][i];
  if constexpr (Op::kInputs > 3) x.x3 = in[3][i];
  prepare<T>(op, x);
  double now;
  Outputs<V> result;
  if constexpr (kMixed<Op, T>) {
    const auto op_float = op.in_float();
    now = op_float.affine(x, code).b + where(code, kContinues, op.continuation * next);
    result = op_float.finish(x, code, static_cast<float>(now), 0.0f);
  } else {
    now = op.advance(op.affine(x, code), code, next);
    result = op.finish(x, code, now, next);
  }
  out[0][i] = static_cast<T>(result.y0);
  if constexpr (Op::kOutputs > 1) out[1][i] = static_cast<T>(result.y1);
  return now;
}

#if FASTRL_LEVEL > 1

// Conversions that GCC 12 takes apart when they are written as __builtin_convertvector.
#if FASTRL_LEVEL == 4
constexpr int64_t kLanes = 8;
using Lanes = Doubles8;
using LanesMask = DoublesMask8;
using FloatLanes = Floats8;
using FloatMask = FloatsMask8;
FASTRL_TARGET FASTRL_INLINE Lanes widen(FloatLanes x) { return (Lanes)_mm512_cvtps_pd((__m256)x); }
FASTRL_TARGET FASTRL_INLINE FloatLanes narrow(Lanes x) { return (FloatLanes)_mm512_cvtpd_ps((__m512d)x); }
FASTRL_TARGET FASTRL_INLINE __m128i load_codes(const uint8_t* p) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
}
FASTRL_TARGET FASTRL_INLINE LanesMask code_lanes(const uint8_t* p) {
  return (LanesMask)_mm512_cvtepu8_epi64(load_codes(p));
}
FASTRL_TARGET FASTRL_INLINE FloatMask float_code_lanes(const uint8_t* p) {
  return (FloatMask)_mm256_cvtepu8_epi32(load_codes(p));
}
FASTRL_TARGET FASTRL_INLINE Lanes first_lane(Lanes x) { return __builtin_shufflevector(x, x, 0, 0, 0, 0, 0, 0, 0, 0); }
#else
constexpr int64_t kLanes = 4;
using Lanes = Doubles4;
using LanesMask = DoublesMask4;
using FloatLanes = Floats4;
using FloatMask = FloatsMask4;
FASTRL_TARGET FASTRL_INLINE Lanes widen(FloatLanes x) { return (Lanes)_mm256_cvtps_pd((__m128)x); }
FASTRL_TARGET FASTRL_INLINE FloatLanes narrow(Lanes x) { return (FloatLanes)_mm256_cvtpd_ps((__m256d)x); }
FASTRL_TARGET FASTRL_INLINE __m128i load_codes(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm_cvtsi32_si128(four);
}
FASTRL_TARGET FASTRL_INLINE LanesMask code_lanes(const uint8_t* p) {
  return (LanesMask)_mm256_cvtepu8_epi64(load_codes(p));
}
FASTRL_TARGET FASTRL_INLINE FloatMask float_code_lanes(const uint8_t* p) {
  return (FloatMask)_mm_cvtepu8_epi32(load_codes(p));
}
FASTRL_TARGET FASTRL_INLINE Lanes first_lane(Lanes x) { return __builtin_shufflevector(x, x, 0, 0, 0, 0); }
#endif
FASTRL_TARGET FASTRL_INLINE Lanes broadcast(double x) { return Lanes{} + x; }
FASTRL_TARGET FASTRL_INLINE Lanes load_wide(const double* p) { return load_as<Lanes>(p); }
FASTRL_TARGET FASTRL_INLINE Lanes load_wide(const float* p) { return widen(load_as<FloatLanes>(p)); }
FASTRL_TARGET FASTRL_INLINE void store_wide(double* p, Lanes x) { store_as(p, x); }
FASTRL_TARGET FASTRL_INLINE void store_wide(float* p, Lanes x) { store_as(p, narrow(x)); }

// kLanes items from i on: what the op makes of them, and where its results go.
template <class Op, class T, bool kFloat = kMixed<Op, T>>
struct LaneStep {
  Inputs<Lanes> x;
  LanesMask code;
  Affine<Lanes> step;

  FASTRL_TARGET FASTRL_INLINE void load(const Op& op, const T* const* in, const uint8_t* codes, int64_t i) {
    code = code_lanes(codes + i);
    x = {load_wide(in[0] + i), Lanes{}, Lanes{}, Lanes{}};
    if constexpr (Op::kInputs > 1) x.x1 = load_wide(in[1] + i);
    if constexpr (Op::kInputs > 2) x.x2 = load_wide(in[2] + i);
    if constexpr (Op::kInputs > 3) x.x3 = load_wide(in[3] + i);
    prepare<T>(op, x);
    step = op.affine(x, code);
  }
  FASTRL_TARGET FASTRL_INLINE void store(const Op& op, T* const* out, int64_t i, Lanes now, Lanes next) const {
    const Outputs<Lanes> result = op.finish(x, code, now, next);
    store_wide(out[0] + i, result.y0);
    if constexpr (Op::kOutputs > 1) store_wide(out[1] + i, result.y1);
  }
};

template <class Op>
struct LaneStep<Op, float, true> {
  Inputs<FloatLanes> x;
  LanesMask code;
  FloatMask float_code;
  Affine<Lanes> step;

  FASTRL_TARGET FASTRL_INLINE void load(const Op& op, const float* const* in, const uint8_t* codes, int64_t i) {
    code = code_lanes(codes + i);
    float_code = float_code_lanes(codes + i);
    x = {load_as<FloatLanes>(in[0] + i), FloatLanes{}, FloatLanes{}, FloatLanes{}};
    if constexpr (Op::kInputs > 1) x.x1 = load_as<FloatLanes>(in[1] + i);
    if constexpr (Op::kInputs > 2) x.x2 = load_as<FloatLanes>(in[2] + i);
    step = {where(code, kContinues, broadcast(op.continuation)), widen(op.in_float().affine(x, float_code).b)};
  }
  FASTRL_TARGET FASTRL_INLINE void store(const Op& op, float* const* out, int64_t i, Lanes now, Lanes) const {
    const FloatLanes y = narrow(now);
    const Outputs<FloatLanes> result = op.in_float().finish(x, float_code, y, y);
    store_as(out[0] + i, result.y0);
    if constexpr (Op::kOutputs > 1) store_as(out[1] + i, result.y1);
  }
};

// kVectors times kLanes environments from column n0 on, y in registers.
template <int kVectors, class Op, class T>
FASTRL_TARGET FASTRL_INLINE void scan_columns(const Op& op, const Tile<T>& tile, int64_t n0, double* y) {
  Lanes next[kVectors];
  for (int v = 0; v < kVectors; ++v) next[v] = load_as<Lanes>(y + n0 + v * kLanes);
  const T* in[kMaxScanInputs];
  T* out[kMaxScanOutputs];
  int64_t t = tile.rows - 1;
  for (int i = 0; i < Op::kInputs; ++i) in[i] = tile.in[i] + t * tile.in_stride[i] + n0;
  for (int i = 0; i < Op::kOutputs; ++i) out[i] = tile.out[i] + t * tile.out_stride[i] + n0;
  for (const uint8_t* code = tile.code + t * tile.columns + n0; t >= 0; --t, code -= tile.columns) {
    for (int v = 0; v < kVectors; ++v) {
      LaneStep<Op, T> lanes;
      lanes.load(op, in, code, v * kLanes);
      const Lanes now = op.advance(lanes.step, lanes.code, next[v]);
      lanes.store(op, out, v * kLanes, now, next[v]);
      next[v] = now;
    }
    for (int i = 0; i < Op::kInputs; ++i) in[i] -= tile.in_stride[i];
    for (int i = 0; i < Op::kOutputs; ++i) out[i] -= tile.out_stride[i];
  }
  for (int v = 0; v < kVectors; ++v) store_as(y + n0 + v * kLanes, next[v]);
}

// One round of composing steps: lane i takes in lane i + k. A factor of 0 cuts, whatever it would multiply.
template <int k, bool kConstant>
FASTRL_TARGET FASTRL_INLINE void compose(Affine<Lanes>& s, LanesMask& exact) {
  const Lanes a = shift_lanes<k>(s.a, broadcast(1.0)), b = shift_lanes<k>(s.b, Lanes{});
  const Lanes before = s.a;
  s.b = s.b + times(s.a, b);
  s.a = kConstant ? s.a * a : select(a != 0, times(s.a, a), Lanes{});
  exact &= ((s.a - s.a) == 0) & ((s.a != 0) | (before == 0) | (a == 0));
}
#endif

// Serial in time, side by side in n; y[n] comes in as y_{t+1} and goes out as y_t.
template <class Op, class T>
FASTRL_TARGET void scan_rows(const Op& given, const Tile<T>& tile, double* y) {
  const Op op = given;  // which no store can change: its numbers stay in registers
#if FASTRL_LEVEL > 1
  const int64_t columns = tile.columns, whole = columns / kLanes * kLanes, rest = columns - whole;
  // What is left of a row that is no whole vector: the last vector that the row holds, whose first columns are done
  // twice.
  Lanes y_rest{};
  if (rest > 0 && whole > 0) y_rest = load_as<Lanes>(y + columns - kLanes);
  const int64_t first = whole > 0 ? columns : 0;  // of the columns that are walked one by one
  if (columns <= kShortRow) {                     // y stays in registers
    int64_t n = 0;
    for (; n + 2 * kLanes <= whole; n += 2 * kLanes) scan_columns<2>(op, tile, n, y);
    for (; n < whole; n += kLanes) scan_columns<1>(op, tile, n, y);
  }
  const int64_t by_row = columns <= kShortRow ? 0 : whole;  // columns that are walked row by row, as memory lies
#else
  const int64_t columns = tile.columns, first = 0, by_row = 0;
#endif
  for (int64_t t = by_row > 0 || first < columns ? tile.rows - 1 : -1; t >= 0; --t) {
    const T* in[kMaxScanInputs];
    T* out[kMaxScanOutputs];
    for (int i = 0; i < Op::kInputs; ++i) in[i] = tile.in[i] + t * tile.in_stride[i];
    for (int i = 0; i < Op::kOutputs; ++i) out[i] = tile.out[i] + t * tile.out_stride[i];
    const uint8_t* code = tile.code + t * columns;
#if FASTRL_LEVEL > 1
    for (int64_t n = 0; n < by_row; n += kLanes) {
      LaneStep<Op, T> lanes;
      lanes.load(op, in, code, n);
      const Lanes next = load_as<Lanes>(y + n), now = op.advance(lanes.step, lanes.code, next);
      lanes.store(op, out, n, now, next);
      store_as(y + n, now);
    }
#endif
    FASTRL_INDEPENDENT
    for (int64_t n = first; n < columns; ++n) y[n] = step_one(op, in, code, out, n, y[n]);
  }
#if FASTRL_LEVEL > 1
  if (rest > 0 && whole > 0) {
    store_as(y + columns - kLanes, y_rest);
    scan_columns<1>(op, tile, columns - kLanes, y);
  }
#endif
}

// One environment, whose steps lie next to each other; returns y of the first step, given that after the last. The
// steps of a vector are composed in two or three rounds, so that they wait for what comes after them only once.
template <class Op, class T>
FASTRL_TARGET double scan_steps(const Op& given, const Tile<T>& tile, double y) {
  const Op op = given;
  int64_t t = tile.rows;
#if FASTRL_LEVEL > 1
  Lanes next = broadcast(y);
  for (; t >= kLanes; t -= kLanes) {
    LaneStep<Op, T> lanes;
    lanes.load(op, tile.in, tile.code, t - kLanes);
    Affine<Lanes> s = lanes.step;
    LanesMask exact = (s.a - s.a) == 0;
    compose<1, Op::kConstant>(s, exact);
    compose<2, Op::kConstant>(s, exact);
    if constexpr (kLanes == 8) compose<4, Op::kConstant>(s, exact);
    Lanes now = s.b + times(s.a, next);
    if constexpr (!Op::kConstant) {
      // A product that overflowed, underflowed to 0 or is NaN says nothing of what it would multiply: one by one.
      for (int64_t i = kLanes - 1; i >= 0; --i)
        if (!exact[i]) now[i] = lanes.step.b[i] + times<double>(lanes.step.a[i], i + 1 < kLanes ? now[i + 1] : next[0]);
    }
    lanes.store(op, tile.out, t - kLanes, now, shift_lanes<1>(now, next));
    next = first_lane(now);
  }
  y = next[0];
#endif
  for (; t > 0; --t) y = step_one(op, tile.in, tile.code, tile.out, t - 1, y);
  return y;
}
