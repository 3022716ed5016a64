// The loops of mlp.h over a block of rows, written once for every processor level.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/simd_math.h"
#include "mlp/mlp.h"
#include "mlp/tiles.h"

namespace fastrl {

namespace mlp {
constexpr int64_t kBlock = 64;  // rows that go through all layers together
constexpr int64_t kNarrow = 4;  // outputs that are sums of products along the inputs instead of a tile

inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
// Floats from row to row. An even number of cache lines would put the rows of a wide layer into few sets of the cache.
inline int64_t stride(int64_t n) {
  const int64_t m = padded(n);
  return m >= 128 && m / 16 % 2 == 0 ? m + 16 : m;
}

constexpr int64_t kPiece = 128;  // rows whose gradients are one task's sum, at least
constexpr int64_t kPieces = 16;  // tasks a network, at most
// It depends on the rows alone, so the sums do not depend on the threads.
inline int64_t piece_rows(int64_t rows) {
  return std::max(kPiece, ((rows + kPieces - 1) / kPieces + kBlock - 1) / kBlock * kBlock);
}
inline int64_t count_pieces(int64_t rows) { return (rows + piece_rows(rows) - 1) / piece_rows(rows); }
}  // namespace mlp

// One call's work on a block of rows of one network, at each processor level.
struct MlpPass {
  const Mlp* owner;
  const std::vector<Mlp::Packed>* packed;
  const std::vector<Mlp::Kept>* kept;  // null: nothing is kept
  const float* input;                  // [rows, mlp::stride(in)]
  int64_t rows;
  float* out;          // [networks, rows, outputs]
  const float* d_out;  // as `out`
  bool wants_parameters;
  const float* input_weights;  // of network k, `columns` of the first layer's [out, mlp::padded(columns)]
  float* d_inputs;             // [networks, rows, mlp::padded(columns)]
  int64_t columns;
  const float* start;  // of the first layer's sums, rows `start_row` apart, with the first `skipped` inputs; null: bias
  int64_t start_row, skipped;

  // Of one piece of a network: gradients [out, mlp::stride(in)], [mlp::stride(out)] of the bias, scale and shift, layer
  // by layer.
  struct Sums {
    float *weight, *bias, *scale, *shift;
  };
  static int64_t sums_size(const std::vector<MlpStep>& steps) {
    int64_t n = 0;
    for (const MlpStep& s : steps) n += mlp::padded(s.out * mlp::stride(s.in)) + 3 * mlp::stride(s.out);
    return n;
  }
  static Sums sums_at(const MlpStep& s, float*& at) {
    Sums g;
    g.weight = at, g.bias = at + mlp::padded(s.out * mlp::stride(s.in));
    g.scale = g.bias + mlp::stride(s.out), g.shift = g.scale + mlp::stride(s.out);
    at = g.shift + mlp::stride(s.out);
    return g;
  }

  const Mlp::Packed& layer(int64_t network, size_t l) const {
    return (*packed)[static_cast<size_t>(network) * owner->steps_.size() + l];
  }
  static float* rows_of(float* base, int64_t network, int64_t all_rows, int64_t row, int64_t width) {
    return base ? base + (network * all_rows + row) * width : nullptr;
  }

  // ---- elementwise
  FASTRL_INLINE static float tanh_of(float u) {
    const ExpPair<float> w = exp_pair(-2.0f * magnitude(u), ExpFloor<float>::value);
    // e^{-2|u|} of a NaN is not one.
    return u == u ? with_sign(-w.minus_1 / (1.0f + w.e), u) : u;
  }
  FASTRL_INLINE static void activate(Activation activation, float* x, float* slope, int64_t n) {
    if (activation == Activation::relu) {
      FASTRL_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) x[i] = x[i] < 0 ? 0.0f : x[i];
    } else if (activation == Activation::tanh) {
      FASTRL_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) x[i] = tanh_of(x[i]);
    } else if (activation == Activation::silu) {
      FASTRL_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) {
        const float z = x[i], e = exp_pair(-magnitude(z), ExpFloor<float>::value).e, inverse = 1.0f / (1.0f + e);
        const float s = (z < 0 ? e : 1.0f) * inverse, rest = (z < 0 ? 1.0f : e) * inverse;
        // Past the float range e is 0, and 0 times infinity must be 0.
        x[i] = s == 0.0f ? 0.0f : z * s;
        if (slope) slope[i] = s * (1.0f + (rest == 0.0f ? 0.0f : s == 0.0f ? -1.0f : z * rest));
      }
    }
  }
  FASTRL_INLINE static void times_slope(Activation activation, const float* h, const float* slope, float* d,
                                        int64_t n) {
    if (activation == Activation::relu) {
      FASTRL_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) d[i] = h[i] <= 0 ? 0.0f : d[i];
    } else if (activation == Activation::tanh) {
      FASTRL_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) d[i] *= 1.0f - h[i] * h[i];
    } else if (activation == Activation::silu) {
      FASTRL_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) d[i] *= slope[i];
    }
  }

  template <class V>
  FASTRL_INLINE static float sum_of(const float* x, const float* y, int64_t n) {
    constexpr int64_t lanes = sizeof(V) / sizeof(float);
    V sum{};
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) sum += y ? tiles::load<V>(x + i) * tiles::load<V>(y + i) : tiles::load<V>(x + i);
    float rest = tiles::sum_lanes(sum);
    for (; i < n; ++i) rest += y ? x[i] * y[i] : x[i];
    return rest;
  }
  // x <- scale (x - mean) / sqrt(variance + eps) + shift, group by group, of one row.
  template <class V>
  FASTRL_INLINE static void normalize(const MlpStep& s, const float* scale, const float* shift, float* x, float* normal,
                                      float* inverse) {
    const int64_t n = s.out / s.groups;
    const float share = 1.0f / static_cast<float>(n);
    for (int64_t g = 0; g < s.groups; ++g) {
      float* y = x + g * n;
      const float *a = scale + g * n, *b = shift + g * n;
      const float mean = sum_of<V>(y, nullptr, n) * share;
      for (int64_t i = 0; i < n; ++i) y[i] -= mean;
      const float r = 1.0f / std::sqrt(sum_of<V>(y, y, n) * share + static_cast<float>(Mlp::kEps));
      if (inverse) inverse[g] = r;
      for (int64_t i = 0; i < n; ++i) y[i] *= r;
      if (normal) std::memcpy(normal + g * n, y, static_cast<size_t>(n) * sizeof(float));
      for (int64_t i = 0; i < n; ++i) y[i] = y[i] * a[i] + b[i];
    }
  }
  // d <- the gradient in what was normalized; the gradients of scale and shift are added up.
  template <class V>
  FASTRL_INLINE static void normalize_backward(const MlpStep& s, const float* scale, const float* normal,
                                               const float* inverse, float* d, const Sums* sums) {
    const int64_t n = s.out / s.groups;
    const float share = 1.0f / static_cast<float>(n);
    for (int64_t i = 0; sums && i < s.out; ++i) sums->scale[i] += d[i] * normal[i], sums->shift[i] += d[i];
    for (int64_t g = 0; g < s.groups; ++g) {
      float* e = d + g * n;
      const float *a = scale + g * n, *h = normal + g * n;
      for (int64_t i = 0; i < n; ++i) e[i] *= a[i];
      const float mean = sum_of<V>(e, nullptr, n) * share, with = sum_of<V>(e, h, n) * share, r = inverse[g];
      for (int64_t i = 0; i < n; ++i) e[i] = r * (e[i] - mean - h[i] * with);
    }
  }

  // ---- a block of rows
  template <class V, int m>
  FASTRL_INLINE void forward(int64_t k, int64_t row, int64_t n, float* scratch) const {
    const std::vector<MlpStep>& steps = owner->steps_;
    const float* x = input + row * mlp::stride(steps[0].in);
    for (size_t l = 0; l < steps.size(); ++l) {
      const MlpStep& s = steps[l];
      const Mlp::Packed& p = layer(k, l);
      const int64_t in = mlp::stride(s.in), width = mlp::stride(s.out);
      if (s.out <= mlp::kNarrow && l + 1 == steps.size()) {
        float column[mlp::kBlock];
        static const float zeros[mlp::kBlock] = {};
        for (int64_t j = 0; j < s.out; ++j) {
          tiles::dots<V>(x, in, zeros, p.weight + j * in, column, n, s.in);
          float* to = out + (k * rows + row) * s.out + j;
          for (int64_t i = 0; i < n; ++i) to[i * s.out] = column[i] + p.bias[j];
        }
        return;
      }
      Mlp::Kept none{};
      const Mlp::Kept& keep = kept ? (*kept)[l] : none;
      float* h = rows_of(keep.output, k, rows, row, width);
      if (!h) h = scratch + (l % 2) * mlp::kBlock * owner->widest_;
      const bool begun = l == 0 && start;
      const tiles::Start from = begun ? tiles::Start{start, start_row} : tiles::Start{p.bias, 0};
      const int64_t first = begun ? skipped : 0;
      if (s.out <= mlp::kNarrow)
        for (int64_t i = 0; i < n; ++i) tiles::dots<V>(p.weight, in, p.bias, x + i * in, h + i * width, s.out, s.in);
      else if (s.activation == Activation::relu && s.groups == 0)
        tiles::multiply<V, m, true>({x + first, in, 1}, p.transposed + first * width, width, from, h, width, n,
                                    mlp::padded(s.out), s.in - first);
      else
        tiles::multiply<V, m, false>({x + first, in, 1}, p.transposed + first * width, width, from, h, width, n,
                                     mlp::padded(s.out), s.in - first);
      finish<V>(s, p, keep, k, row, n, h, s.out <= mlp::kNarrow);
      if (l + 1 == steps.size())
        for (int64_t i = 0; i < n; ++i)
          std::memcpy(out + (k * rows + row + i) * s.out, h + i * width, static_cast<size_t>(s.out) * sizeof(float));
      x = h;
    }
  }
  // The first layer's sums of one row of `input` after its first inputs, in the order of `forward`.
  template <class V, int m>
  FASTRL_INLINE void begin_first(int64_t inputs, float* sums) const {
    const MlpStep& s = owner->steps_[0];
    const Mlp::Packed& p = layer(0, 0);
    const int64_t width = mlp::stride(s.out);
    tiles::multiply<V, m, false>({input, inputs, 1}, p.transposed, width, {p.bias, 0}, sums, width, 1,
                                 mlp::padded(s.out), inputs);
  }
  // LayerNorm and activation of rows that the product left in h.
  template <class V>
  FASTRL_INLINE void finish(const MlpStep& s, const Mlp::Packed& p, const Mlp::Kept& keep, int64_t k, int64_t row,
                            int64_t n, float* h, bool has_no_relu) const {
    const int64_t width = mlp::stride(s.out);
    if (s.groups > 0)
      for (int64_t i = 0; i < n; ++i)
        normalize<V>(s, p.scale, p.shift, h + i * width, rows_of(keep.normal, k, rows, row + i, width),
                     rows_of(keep.inverse, k, rows, row + i, s.groups));
    if (s.activation == Activation::relu && s.groups == 0 && !has_no_relu) return;
    float* slope = rows_of(keep.slope, k, rows, row, width);
    for (int64_t i = 0; i < n; ++i) activate(s.activation, h + i * width, slope ? slope + i * width : nullptr, s.out);
  }

  template <class V, int m>
  FASTRL_INLINE void backward(int64_t k, int64_t row, int64_t n, float* scratch, float* sums_begin, bool first) const {
    const std::vector<MlpStep>& steps = owner->steps_;
    std::array<Sums, 64> all;
    for (size_t l = 0; wants_parameters && l < steps.size(); ++l) all[l] = sums_at(steps[l], sums_begin);
    float* d = scratch;
    const MlpStep& top = steps.back();
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(d + i * mlp::stride(top.out), d_out + (k * rows + row + i) * top.out,
                  static_cast<size_t>(top.out) * sizeof(float));
    for (size_t l = steps.size(); l-- > 0;) {
      const MlpStep& s = steps[l];
      const Mlp::Packed& p = layer(k, l);
      const Mlp::Kept& keep = (*kept)[l];
      const int64_t in = mlp::stride(s.in), width = mlp::stride(s.out);
      const Sums* sums = wants_parameters ? &all[l] : nullptr;
      if (s.activation != Activation::none) {
        const float *h = rows_of(keep.output, k, rows, row, width), *slope = rows_of(keep.slope, k, rows, row, width);
        for (int64_t i = 0; i < n; ++i)
          times_slope(s.activation, h + i * width, slope ? slope + i * width : nullptr, d + i * width, s.out);
      }
      if (sums && first && s.groups > 0) std::fill_n(sums->scale, s.out, 0.0f), std::fill_n(sums->shift, s.out, 0.0f);
      if (s.groups > 0)
        for (int64_t i = 0; i < n; ++i)
          normalize_backward<V>(s, p.scale, rows_of(keep.normal, k, rows, row + i, width),
                                rows_of(keep.inverse, k, rows, row + i, s.groups), d + i * width, sums);
      if (sums) {
        const float* x = l > 0 ? rows_of((*kept)[l - 1].output, k, rows, row, in) : input + row * in;
        tiles::multiply<V, m, false>({d, 1, width}, x, in, {first ? nullptr : sums->weight, in}, sums->weight, in,
                                     s.out, mlp::padded(s.in), n);
        if (first) std::fill_n(sums->bias, s.out, 0.0f);
        for (int64_t i = 0; i < n; ++i) {
          FASTRL_INDEPENDENT
          for (int64_t j = 0; j < s.out; ++j) sums->bias[j] += d[i * width + j];
        }
      }
      float* next = scratch + (d == scratch) * mlp::kBlock * owner->widest_;
      if (l > 0)
        tiles::multiply<V, m, false>({d, width, 1}, p.weight, in, {nullptr, 0}, next, in, n, mlp::padded(s.in), s.out);
      else if (d_inputs)
        tiles::multiply<V, m, false>(
            {d, width, 1}, input_weights + k * s.out * mlp::padded(columns), mlp::padded(columns), {nullptr, 0},
            d_inputs + (k * rows + row) * mlp::padded(columns), mlp::padded(columns), n, mlp::padded(columns), s.out);
      d = next;
    }
  }

  // Few rows, with the weights as they lie: x [mlp::stride(in)], one row.
  template <class V>
  FASTRL_INLINE void forward_few(const float* vector, int64_t k, int64_t row, float* scratch) const {
    const std::vector<MlpStep>& steps = owner->steps_;
    const float *x = input + row * mlp::stride(steps[0].in), *p = vector + k * owner->per_network_;
    for (size_t l = 0; l < steps.size(); ++l) {
      const MlpStep& s = steps[l];
      float* h = l + 1 == steps.size() ? out + (k * rows + row) * s.out : scratch + (l % 2) * owner->widest_;
      if (s.advantage_weight >= 0) {
        const int64_t half = s.in / 2, atoms = s.atoms;
        float* const value = scratch + (l % 2) * owner->widest_;
        tiles::dots<V>(p + s.weight, half, p + s.bias, x, value, atoms, half);
        tiles::dots<V>(p + s.advantage_weight, half, p + s.advantage_bias, x + half, h, s.out, half);
        const float n = static_cast<float>(s.out / atoms);
        for (int64_t j = 0; j < atoms; ++j) {
          float mean = 0;
          for (int64_t a = j; a < s.out; a += atoms) mean += h[a];
          mean /= n;
          for (int64_t a = j; a < s.out; a += atoms) h[a] = value[j] + (h[a] - mean);
        }
        return;
      }
      tiles::dots<V>(p + s.weight, s.in, p + s.bias, x, h, s.out, s.in);
      if (s.groups > 0) normalize<V>(s, p + s.scale, p + s.shift, h, nullptr, nullptr);
      activate(s.activation, h, nullptr, s.out);
      x = h;
    }
  }
};

}  // namespace fastrl
