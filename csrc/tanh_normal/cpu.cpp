#include "tanh_normal/tanh_normal.h"

#include "core/levels.h"
#include "heads/chunks.h"

namespace fastrl {
namespace {

// Elements that are worked on together.
constexpr int64_t kChunk = 512;
static_assert(kChunk <= kNormals, "a chunk's noise is drawn at once");

template <class R>
struct alignas(64) Buffer {
  R x[kChunk];
};

// What is read to the end of the last vector, beyond what was copied there.
template <class R>
struct Staged : Buffer<R> {
  Staged() : Buffer<R>{} {}
};

// What the loops compare with, as variables: of constants compilers make masks, where a minimum would do.
template <class R>
struct Limits {
  R low, high;              // of log_std
  R sigma_low, sigma_high;  // of the one that e^ is taken of
  R largest;                // of u and e^log_std eps
  double largest_abs_u;     // so that no 0 is multiplied by infinity
};
Limits<float> limits_of(const TanhNormal& call, float) {
  const auto low = static_cast<float>(call.log_std_min), high = static_cast<float>(call.log_std_max);
  const auto largest = static_cast<float>(kLargestFloat);
  return {low, high, clamp(low, -kMaxLogStd, kMaxLogStd), clamp(high, -kMaxLogStd, kMaxLogStd), largest, kLargest};
}
Limits<double> limits_of(const TanhNormal& call, double) {
  return {call.log_std_min, call.log_std_max, call.log_std_min, call.log_std_max, kLargest, kLargest};
}

// ---------------------------------------------------------------- the loops: whole vectors
// Short ones, one after the other: of a long one processors do not see enough at a time to keep busy.
FASTRL_INLINE double sigma_within(float log_std) { return exp_rough(static_cast<double>(log_std)); }
FASTRL_INLINE double sigma_within(double log_std) { return sigma_of(log_std); }

template <class R>
FASTRL_INLINE void sigma_loop(const R* log_std, const Limits<R>& limits, int64_t n, double* sigma) {
  const R low = limits.sigma_low, high = limits.sigma_high;
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) sigma[i] = sigma_within(clamp(log_std[i], low, high));
}

// u, e^s eps, and the part of log_prob that is summed in float64 from the start; `twice` is 2, or 0 without 2 |u|.
template <class R>
FASTRL_INLINE void draw_loop(const R* mean, const R* log_std, const R* eps, const double* sigma,
                             const Limits<R>& limits, double twice, int64_t n, R* u, R* scaled_noise, double* part) {
  const double largest_abs_u = limits.largest_abs_u;
  const R low = limits.low, high = limits.high, largest = limits.largest;
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const R s = clamp(log_std[i], low, high), zero = 0;
    const R poison = mean[i] * zero + s * zero + eps[i] * zero;  // NaN of NaN and infinities
    const double e = eps[i], d = sigma[i] * e, x = mean[i] + d;
    u[i] = clamp(static_cast<R>(x), -largest, largest) + poison;
    scaled_noise[i] = clamp(static_cast<R>(d), -largest, largest);
    const double abs_u = magnitude(x);
    part[i] = log_prob_part(e, s) + twice * (abs_u < largest_abs_u ? abs_u : largest_abs_u) + poison;
  }
}

template <class R>
FASTRL_INLINE void decay_loop(const R* u, R floor, int64_t n, R* w, R* rest) {
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Decay<R> d = decay(u[i], floor);
    w[i] = d.w, rest[i] = d.rest;
  }
}

template <class R>
FASTRL_INLINE void squash_loop(const R* w, const R* rest, const R* scale, const R* bias, const R* low, const R* high,
                               int64_t n, R* action, double* part) {
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Squashed<R> q = squash(Decay<R>{w[i], rest[i]});
    action[i] = clamp(bias[i] + scale[i] * q.t, low[i], high[i]);
    part[i] += static_cast<double>(R(2) * q.log1p_w);
  }
}

template <class R>
FASTRL_INLINE void squash_epsilon_loop(const R* w, const R* scale, double epsilon, int64_t n, double* part) {
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const R slope = squash(Decay<R>{w[i], R(0)}).slope;
    part[i] -= log_positive(static_cast<double>(scale[i]) * static_cast<double>(slope) + epsilon);
  }
}

template <class R>
FASTRL_INLINE void mode_loop(const R* w, const R* rest, const R* scale, const R* bias, const R* low, const R* high,
                             int64_t n, R* action) {
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < n; ++i)
    action[i] = clamp(bias[i] + scale[i] * squash(Decay<R>{w[i], rest[i]}).t, low[i], high[i]);
}

template <bool stable, class R>
FASTRL_INLINE void grad_loop(const R* w, const R* rest, const R* scaled_noise, const R* scale, R epsilon, const R* ga,
                             const R* gl, int64_t n, R* g_mean, R* g_log_std) {
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const R g = squash_grad(squash(Decay<R>{w[i], rest[i]}), scale[i], stable ? R(0) : epsilon, ga[i], gl[i]);
    g_mean[i] = g;
    g_log_std[i] = g * scaled_noise[i] - gl[i];
  }
}

template <class R>
FASTRL_INLINE void stop_clamped_loop(const R* log_std, R low, R high, int64_t n, R* grad) {
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) grad[i] = log_std[i] < low || log_std[i] > high ? R(0) : grad[i];
}

// In float64.
struct BoundRows {
  const double *low, *high, *first_in, *last_in;
};
FASTRL_INLINE Unsquashed unsquash_at(const double* mean, const double* log_std, const double* action,
                                     const BoundRows& b, double low, double high, int64_t i) {
  return unsquash(mean[i], clamp(log_std[i], low, high), action[i], b.low[i], b.high[i], b.first_in[i], b.last_in[i]);
}

FASTRL_INLINE void log_prob_loop(const double* mean, const double* log_std, const double* action, const BoundRows& b,
                                 double low, double high, double epsilon, int64_t n, double* term) {
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < n; ++i)
    term[i] =
        unsquashed_log_prob(unsquash_at(mean, log_std, action, b, low, high, i), clamp(log_std[i], low, high), epsilon);
}

FASTRL_INLINE void log_prob_grad_loop(const double* mean, const double* log_std, const double* action,
                                      const BoundRows& b, double low, double high, double epsilon, double largest,
                                      const double* gl, int64_t n, double* g_mean, double* g_log_std,
                                      double* g_action) {
  FASTRL_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Unsquashed s = unsquash_at(mean, log_std, action, b, low, high, i);
    g_mean[i] = bounded_grad(gl[i], s.z * s.inverse_sigma, largest);
    g_log_std[i] = bounded_grad(gl[i], s.z * s.z - 1.0, largest);
    g_action[i] = bounded_grad(gl[i], unsquashed_grad(s, epsilon), largest);
  }
}

// ---------------------------------------------------------------- what the rows of a chunk share
// Numbers of the columns, a row after the other: made again only where a chunk begins at another column.
template <class R>
struct RowPattern : Staged<R> {
  template <class F>
  void fill(const Chunk& c, int64_t columns, F f) {
    if (holds(c, columns)) return;
    for (int64_t j = 0; j < c.columns; ++j) this->x[j] = f(c.column + j);
    const int64_t n = c.size();
    for (int64_t done = c.columns; done < n; done *= 2)  // each copy doubles what there is
      std::memcpy(this->x + done, this->x, static_cast<size_t>(n - done < done ? n - done : done) * sizeof(R));
    rows_ = c.columns == columns ? c.rows : 0;
  }
  bool holds(const Chunk& c, int64_t columns) const { return c.columns == columns && c.rows <= rows_; }

 private:
  int64_t rows_ = 0;
};

template <class R>
struct ScaleRows {
  RowPattern<R> scale, bias, low, high;
  void fill(const Bound* b, const Chunk& c, int64_t columns) {
    scale.fill(c, columns, [&](int64_t j) { return static_cast<R>(b[j].scale()); });
    bias.fill(c, columns, [&](int64_t j) { return static_cast<R>(b[j].bias()); });
    low.fill(c, columns, [&](int64_t j) { return static_cast<R>(b[j].low); });
    high.fill(c, columns, [&](int64_t j) { return static_cast<R>(b[j].high); });
  }
};

struct LimitRows {
  RowPattern<double> low, high, first_in, last_in;
  BoundRows fill(const Bound* b, const Chunk& c, int64_t columns) {
    low.fill(c, columns, [&](int64_t j) { return b[j].low; });
    high.fill(c, columns, [&](int64_t j) { return b[j].high; });
    first_in.fill(c, columns, [&](int64_t j) { return b[j].first_in; });
    last_in.fill(c, columns, [&](int64_t j) { return b[j].last_in; });
    return {low.x, high.x, first_in.x, last_in.x};
  }
};

// A chunk's numbers, in whole vectors: where they lie, or copied to `x`.
template <class T>
const T* staged(const Columns& a, const Chunk& c, T* x) {
  const char* at = chunk_data(a, c);
  if (c.size() == c.padded() && chunk_is_contiguous(a, c, sizeof(T)) &&
      reinterpret_cast<uintptr_t>(at) % alignof(T) == 0)
    return reinterpret_cast<const T*>(at);
  at_level<stage_chunk<T, T>>(a, c, x);
  return x;
}

// Where whole vectors of a contiguous output can be written: in its place, or in `x`, for `copy_out`.
template <class T>
T* place(const Chunk& c, int64_t columns, T* out, T* x) {
  return out && c.size() == c.padded() ? out + c.row * columns + c.column : x;
}

// log_std of a chunk, copied again only where it changes from row to row.
template <class T>
struct LogStdRows : RowPattern<T> {
  const T* load(const Columns& a, const Chunk& c, int64_t columns) {
    if (a.row_stride != 0) return staged(a, c, this->x);
    this->fill(c, columns, [&](int64_t j) { return load_item<T>(a.data + j * a.column_stride); });
    return this->x;
  }
};

// With e^log_std, made again only where it changes.
template <class T>
struct SigmaRows : LogStdRows<T> {
  const Limits<T> limits;
  Buffer<double> sigma;
  explicit SigmaRows(const TanhNormal& call) : limits(limits_of(call, T())) {}
  const T* load(const Columns& a, const Chunk& c, int64_t columns) {
    const bool known = a.row_stride == 0 && this->holds(c, columns);
    const T* const log_std = LogStdRows<T>::load(a, c, columns);
    if (!known) at_level<sigma_loop<T>>(log_std, limits, c.padded(), sigma.x);
    return log_std;
  }
};

template <class T>
struct Decays {
  Buffer<T> w, rest;
  void of(const T* u, int64_t n) { at_level<decay_loop<T>>(u, ExpFloor<T>::value, n, w.x, rest.x); }
};

// g[row] for every element of a row, 0 without g: a row is filled eight at a time, and the next overwrites its end.
template <class R>
struct RowGrads {
  static constexpr int64_t kStep = 8;
  alignas(64) R x[kChunk + kStep] = {};
  template <class T>
  void load(const T* g, const Chunk& c) {
    if (!g) return;
    R* to = x;
    for (int64_t r = 0; r < c.rows; ++r, to += c.columns) {
      const auto grad = static_cast<R>(g[c.row + r]);
      for (int64_t j = 0; j < c.columns; j += kStep)
        for (int64_t k = 0; k < kStep; ++k) to[j + k] = grad;
    }
  }
};

template <class T>
void copy_out(const T* x, const Chunk& c, int64_t columns, T* out) {
  T* const at = out + c.row * columns + c.column;
  if (x != at) std::memcpy(at, x, static_cast<size_t>(c.size()) * sizeof(T));
}

template <class T>
void narrow_out(const double* x, const Chunk& c, int64_t columns, T* out) {
  out += c.row * columns + c.column;
  for (int64_t i = 0; i < c.size(); ++i) out[i] = static_cast<T>(x[i]);
}

double constant_of(const TanhNormal& call) {
  double sum = 0;
  for (int64_t j = 0; j < call.columns; ++j) sum += log_prob_constant(call.bounds[j].scale(), call.epsilon == 0);
  return sum;
}

}  // namespace

template <class T>
void TanhNormalSample<T>::operator()(int64_t begin, int64_t end) const {
  ScaleRows<T> rows;
  SigmaRows<T> s(*this);
  Normals<T> normals;
  Staged<T> m, given;
  Buffer<T> x, d, a;
  Decays<T> decayed;
  Buffer<double> part;
  const double constant = constant_of(*this);
  double carry = 0;
  for_chunks<kChunk>(begin, end, columns, [&](const Chunk& c) {
    const int64_t n = c.padded(), at = c.row * columns + c.column;
    rows.fill(bounds, c, columns);
    const T* const log_stds = s.load(log_std, c, columns);
    const T* const means = staged(mean, c, m.x);
    const T* const eps = noise.data ? staged(noise, c, given.x) : normals.draw(seed, counter, at, c.size());
    T *const us = place(c, columns, u, x.x), *const ds = place(c, columns, scaled_noise, d.x);
    T* const actions = place(c, columns, action, a.x);
    at_level<draw_loop<T>>(means, log_stds, eps, s.sigma.x, s.limits, epsilon > 0 ? 0.0 : 2.0, n, us, ds, part.x);
    decayed.of(us, n);
    const T *const w = decayed.w.x, *const rest = decayed.rest.x;
    if (epsilon > 0) {
      at_level<mode_loop<T>>(w, rest, rows.scale.x, rows.bias.x, rows.low.x, rows.high.x, n, actions);
      at_level<squash_epsilon_loop<T>>(w, rows.scale.x, epsilon, n, part.x);
    } else {
      at_level<squash_loop<T>>(w, rest, rows.scale.x, rows.bias.x, rows.low.x, rows.high.x, n, actions, part.x);
    }
    copy_out(actions, c, columns, action);
    if (u) copy_out(us, c, columns, u), copy_out(ds, c, columns, scaled_noise);
    put_row_sums(part.x, c, columns, -constant, carry, log_prob);
  });
}

template <class T>
void TanhNormalSampleGrad<T>::operator()(int64_t begin, int64_t end) const {
  ScaleRows<T> rows;
  LogStdRows<T> s;
  Staged<T> x, d, ga;
  RowGrads<T> gl;
  Buffer<T> g_mean, g_log_std;
  Decays<T> decayed;
  const auto low = static_cast<T>(log_std_min), high = static_cast<T>(log_std_max);
  const bool limited = log_std_min > -kInf || log_std_max < kInf;
  const auto size = static_cast<int64_t>(sizeof(T));
  const Columns kept_u{reinterpret_cast<const char*>(u), columns * size, size};
  const Columns kept_noise{reinterpret_cast<const char*>(scaled_noise), columns * size, size};
  for_pieces<kChunk>(begin, end, columns, [&](const Chunk& c) {
    const int64_t n = c.padded();
    rows.fill(bounds, c, columns);
    const T *const us = staged(kept_u, c, x.x), *const ds = staged(kept_noise, c, d.x);
    const T* const grad_actions = grad_action.data ? staged(grad_action, c, ga.x) : ga.x;
    gl.load(grad_log_prob, c);
    T *const to_mean = place(c, columns, grad_mean, g_mean.x), *const to_log_std =
                                                                   place(c, columns, grad_log_std, g_log_std.x);
    decayed.of(us, n);
    const T *const w = decayed.w.x, *const rest = decayed.rest.x;
    if (epsilon > 0)
      at_level<grad_loop<false, T>>(w, rest, ds, rows.scale.x, static_cast<T>(epsilon), grad_actions, gl.x, n, to_mean,
                                    to_log_std);
    else
      at_level<grad_loop<true, T>>(w, rest, ds, rows.scale.x, T(0), grad_actions, gl.x, n, to_mean, to_log_std);
    if (grad_mean) copy_out(to_mean, c, columns, grad_mean);
    if (!grad_log_std && !sums) return;
    if (limited) at_level<stop_clamped_loop<T>>(s.load(log_std, c, columns), low, high, n, to_log_std);
    if (grad_log_std)
      copy_out(to_log_std, c, columns, grad_log_std);
    else
      add_to_sums(to_log_std, c, columns, sums);
  });
}

template <class T>
void TanhNormalLogProb<T>::operator()(int64_t begin, int64_t end) const {
  LimitRows limits;
  Staged<double> m, s, a;
  Buffer<double> term;
  double carry = 0;
  for_chunks<kChunk>(begin, end, columns, [&](const Chunk& c) {
    const BoundRows b = limits.fill(bounds, c, columns);
    at_level<stage_chunk<T, double>>(mean, c, m.x);
    at_level<stage_chunk<T, double>>(log_std, c, s.x);
    at_level<stage_chunk<T, double>>(action, c, a.x);
    at_level_256<log_prob_loop>(m.x, s.x, a.x, b, log_std_min, log_std_max, epsilon, c.padded(), term.x);
    put_row_sums(term.x, c, columns, 0.0, carry, log_prob);
  });
}

template <class T>
void TanhNormalLogProbGrad<T>::operator()(int64_t begin, int64_t end) const {
  LimitRows limits;
  Staged<double> m, s, a;
  RowGrads<double> gl;
  Buffer<double> g_mean, g_log_std, g_action;
  const double largest = std::numeric_limits<T>::max();
  for_pieces<kChunk>(begin, end, columns, [&](const Chunk& c) {
    const int64_t n = c.padded();
    const BoundRows b = limits.fill(bounds, c, columns);
    at_level<stage_chunk<T, double>>(mean, c, m.x);
    at_level<stage_chunk<T, double>>(log_std, c, s.x);
    at_level<stage_chunk<T, double>>(action, c, a.x);
    gl.load(grad_log_prob, c);
    at_level_256<log_prob_grad_loop>(m.x, s.x, a.x, b, log_std_min, log_std_max, epsilon, largest, gl.x, n, g_mean.x,
                                     g_log_std.x, g_action.x);
    if (grad_mean) narrow_out(g_mean.x, c, columns, grad_mean);
    if (grad_action) narrow_out(g_action.x, c, columns, grad_action);
    if (!grad_log_std && !sums) return;
    at_level<stop_clamped_loop<double>>(s.x, log_std_min, log_std_max, n, g_log_std.x);
    if (grad_log_std)
      narrow_out(g_log_std.x, c, columns, grad_log_std);
    else
      add_to_sums(g_log_std.x, c, columns, sums);
  });
}

template <class T>
void TanhNormalMode<T>::operator()(int64_t begin, int64_t end) const {
  ScaleRows<T> rows;
  Staged<T> m, d, ga, gl;
  Buffer<T> a;
  Decays<T> decayed;
  for_chunks<kChunk>(begin, end, columns, [&](const Chunk& c) {
    const int64_t n = c.padded();
    rows.fill(bounds, c, columns);
    at_level<stage_chunk<T, T>>(mean, c, m.x);
    for (int64_t i = 0; i < n; ++i) m.x[i] += m.x[i] * T(0);  // NaN of infinities
    decayed.of(m.x, n);
    if (grad_action.data) {
      at_level<stage_chunk<T, T>>(grad_action, c, ga.x);
      at_level<grad_loop<true, T>>(decayed.w.x, decayed.rest.x, d.x, rows.scale.x, T(0), ga.x, gl.x, n, a.x, d.x);
    } else {
      at_level<mode_loop<T>>(decayed.w.x, decayed.rest.x, rows.scale.x, rows.bias.x, rows.low.x, rows.high.x, n, a.x);
    }
    copy_out(a.x, c, columns, out);
  });
}

#define FASTRL_INSTANTIATE(T)               \
  template struct TanhNormalSample<T>;      \
  template struct TanhNormalSampleGrad<T>;  \
  template struct TanhNormalLogProb<T>;     \
  template struct TanhNormalLogProbGrad<T>; \
  template struct TanhNormalMode<T>;
FASTRL_INSTANTIATE(float)
FASTRL_INSTANTIATE(double)

}  // namespace fastrl
