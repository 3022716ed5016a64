#include "normal/normal.h"

#include "core/levels.h"
#include "heads/chunks.h"

namespace fastrl {
namespace {

constexpr int64_t kChunk = 256;

struct alignas(64) Buffer {
  double x[kChunk] = {};
};

template <class From, class T>
FASTRL_INLINE void put_loop(const From* x, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(x[i]);
}

template <class T>
FASTRL_INLINE void stage(const Columns& a, const Chunk& c, double* x) {
  at_level_256<stage_chunk<T, double>>(a, c, x);
}
template <class From, class T>
FASTRL_INLINE void put(const From* x, int64_t n, T* out) {
  at_level_256<put_loop<From, T>>(x, n, out);
}

FASTRL_INLINE void exp_loop(const double* x, double sign, int64_t n, double* e) {
  for (int64_t i = 0; i < n; ++i) e[i] = exp_bounded(sign * x[i]);
}

FASTRL_INLINE void log_density_loop(const double* x, const double* mean, const double* inverse_sigma,
                                    const double* log_std, int64_t n, double* density) {
  for (int64_t i = 0; i < n; ++i)
    density[i] = normal_log_density(standardize(x[i], mean[i], inverse_sigma[i]).z, log_std[i]);
}

FASTRL_INLINE void entropy_loop(const double* log_std, int64_t n, double* entropy) {
  for (int64_t i = 0; i < n; ++i) entropy[i] = normal_entropy(log_std[i]);
}

FASTRL_INLINE void draw_loop(const double* mean, const double* sigma, const double* log_std, const double* noise,
                             int64_t n, double* action, double* density) {
  for (int64_t i = 0; i < n; ++i) action[i] = mean[i] + sigma[i] * noise[i];
  for (int64_t i = 0; i < n; ++i) density[i] = normal_log_density(noise[i], log_std[i]);
}

FASTRL_INLINE void grad_loop(const double* x, const double* mean, const double* inverse_sigma, const double* gl,
                             const double* gh, int64_t n, double* g_mean, double* g_action, double* g_log_std) {
  for (int64_t i = 0; i < n; ++i) {
    const Standardized s = standardize(x[i], mean[i], inverse_sigma[i]);
    g_mean[i] = gl[i] * s.z_over_sigma;
    g_action[i] = -g_mean[i];
    g_log_std[i] = gl[i] * (s.z * s.z - 1.0) + gh[i];
  }
}

FASTRL_INLINE void draw_grad_loop(const double* ga, const double* sigma, const double* noise, const double* gl,
                                  int64_t n, double* g_log_std) {
  for (int64_t i = 0; i < n; ++i) g_log_std[i] = ga[i] * sigma[i] * noise[i] - gl[i];
}

// log_std of a chunk and e^{sign log_std}; made once where all rows share it.
template <class T>
class Scale {
 public:
  Scale(const Columns& log_std, double sign) : a_(log_std), sign_(sign) {}
  void load(const Chunk& c, int64_t columns) {
    if (a_.row_stride == 0 && c.columns == columns && c.rows <= rows_) return;
    stage<T>(a_, c, log_std.x);
    at_level_256<exp_loop>(log_std.x, sign_, c.padded(), e.x);
    rows_ = c.columns == columns ? c.rows : 0;
  }
  Buffer log_std, e;

 private:
  Columns a_;
  double sign_;
  int64_t rows_ = 0;
};

// The gradient of log_std, written or added up.
template <class T>
FASTRL_INLINE void put_log_std(const double* g, const Chunk& c, int64_t columns, T* out, double* sums) {
  if (out) return put(g, c.size(), out + c.row * columns + c.column);
  add_to_sums(g, c, columns, sums);
}

// g[row] for every element of a row; null gives 0.
template <class T>
FASTRL_INLINE void stage_row_grads(const T* g, const Chunk& c, double* x) {
  if (g) stage<T>(Columns{reinterpret_cast<const char*>(g), sizeof(T), 0}, c, x);
}

}  // namespace

template <class T>
void NormalLogProb<T>::operator()(int64_t begin, int64_t end) const {
  Scale<T> scale(log_std, -1.0);
  Buffer x, m, term;
  double log_prob_carry = 0, entropy_carry = 0;
  for_chunks<kChunk>(begin, end, columns, [&](const Chunk& c) {
    const int64_t n = c.padded();
    scale.load(c, columns);
    stage<T>(action, c, x.x);
    stage<T>(mean, c, m.x);
    at_level_256<log_density_loop>(x.x, m.x, scale.e.x, scale.log_std.x, n, term.x);
    put_row_sums(term.x, c, columns, 0.0, log_prob_carry, log_prob);
    at_level_256<entropy_loop>(scale.log_std.x, n, term.x);
    put_row_sums(term.x, c, columns, 0.0, entropy_carry, entropy);
  });
}

template <class T>
void NormalSample<T>::operator()(int64_t begin, int64_t end) const {
  Scale<T> scale(log_std, 1.0);
  Normals<T> normals;
  Buffer m, eps, x, term;
  double carry = 0;
  for_chunks<kChunk>(begin, end, columns, [&](const Chunk& c) {
    const int64_t n = c.padded(), at = c.row * columns + c.column;
    scale.load(c, columns);
    stage<T>(mean, c, m.x);
    if (noise.data)
      stage<T>(noise, c, eps.x);
    else
      put(normals.draw(seed, counter, at, c.size()), n, eps.x);
    at_level_256<draw_loop>(m.x, scale.e.x, scale.log_std.x, eps.x, n, x.x, term.x);
    put(x.x, c.size(), action + at);
    if (noise_out) put(eps.x, c.size(), noise_out + at);
    put_row_sums(term.x, c, columns, 0.0, carry, log_prob);
  });
}

template <class T>
void NormalGrad<T>::operator()(int64_t begin, int64_t end) const {
  Scale<T> scale(log_std, -1.0);
  Buffer x, m, gl, gh, g_mean, g_action, g_log_std;
  for_pieces<kChunk>(begin, end, columns, [&](const Chunk& c) {
    const int64_t at = c.row * columns + c.column;
    scale.load(c, columns);
    stage<T>(action, c, x.x);
    stage<T>(mean, c, m.x);
    stage_row_grads(grad_log_prob, c, gl.x);
    stage_row_grads(grad_entropy, c, gh.x);
    at_level_256<grad_loop>(x.x, m.x, scale.e.x, gl.x, gh.x, c.padded(), g_mean.x, g_action.x, g_log_std.x);
    if (grad_mean) put(g_mean.x, c.size(), grad_mean + at);
    if (grad_action) put(g_action.x, c.size(), grad_action + at);
    if (grad_log_std || sums) put_log_std(g_log_std.x, c, columns, grad_log_std, sums);
  });
}

template <class T>
void NormalSampleGrad<T>::operator()(int64_t begin, int64_t end) const {
  Scale<T> scale(log_std, 1.0);
  Buffer eps, ga, gl, g;
  for_pieces<kChunk>(begin, end, columns, [&](const Chunk& c) {
    scale.load(c, columns);
    stage<T>(noise, c, eps.x);
    if (grad_action.data) stage<T>(grad_action, c, ga.x);
    stage_row_grads(grad_log_prob, c, gl.x);
    at_level_256<draw_grad_loop>(ga.x, scale.e.x, eps.x, gl.x, c.padded(), g.x);
    put_log_std(g.x, c, columns, grad_log_std, sums);
  });
}

template struct NormalLogProb<float>;
template struct NormalLogProb<double>;
template struct NormalSample<float>;
template struct NormalSample<double>;
template struct NormalGrad<float>;
template struct NormalGrad<double>;
template struct NormalSampleGrad<float>;
template struct NormalSampleGrad<double>;

}  // namespace fastrl
