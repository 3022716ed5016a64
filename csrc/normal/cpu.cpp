#include "normal/normal.h"

#include "heads/chunks.h"

namespace fastrl {
namespace {

constexpr int64_t kChunk = 256;

struct alignas(64) Buffer {
  double x[kChunk] = {};
};

template <class From, class T>
FASTRL_INLINE void put_chunk(const From* x, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(x[i]);
}

// The clones by name: one for each dtype.
#define FASTRL_COPIES(T)                                                                                    \
  FASTRL_CLONES_256 void stage(const Columns& a, const Chunk& c, double* x, T) { stage_chunk<T>(a, c, x); } \
  FASTRL_CLONES_256 void put(const double* x, int64_t n, T* out) { put_chunk(x, n, out); }                  \
  FASTRL_CLONES_256 void widen(const T* x, int64_t n, double* out) { put_chunk(x, n, out); }
FASTRL_COPIES(float)
FASTRL_COPIES(double)
#undef FASTRL_COPIES

FASTRL_CLONES_256 void exponentials(const double* x, double sign, int64_t n, double* e) {
  for (int64_t i = 0; i < n; ++i) e[i] = exp_bounded(sign * x[i]);
}

FASTRL_CLONES void uniforms(const uint64_t* bits, int64_t n, double* u) {
  for (int64_t i = 0; i < n; ++i) u[i] = uniform(bits[i]);
}

// With AVX-512 where there is (three times as fast), and in two loops (short ones keep processors busier). Functions by
// type: GCC cannot clone templates.
#define FASTRL_BOX_MULLER(T)                                                                    \
  FASTRL_CLONES void radii(const uint32_t* first, int64_t pairs, T* radius) {                   \
    FASTRL_INDEPENDENT                                                                          \
    for (int64_t i = 0; i < pairs; ++i) radius[i] = normal_radius(first[i], static_cast<T>(0)); \
  }                                                                                             \
  FASTRL_CLONES void turn(const T* radius, const uint32_t* second, int64_t pairs, T* x) {       \
    FASTRL_INDEPENDENT                                                                          \
    for (int64_t i = 0; i < pairs; ++i) {                                                       \
      const NormalPair<T> z = normal_pair(radius[i], second[i]);                                \
      x[2 * i] = z.even;                                                                        \
      x[2 * i + 1] = z.odd;                                                                     \
    }                                                                                           \
  }
FASTRL_BOX_MULLER(float)
FASTRL_BOX_MULLER(double)
#undef FASTRL_BOX_MULLER

FASTRL_CLONES_256 void log_densities(const double* x, const double* mean, const double* inverse_sigma,
                                     const double* log_std, int64_t n, double* density) {
  for (int64_t i = 0; i < n; ++i)
    density[i] = normal_log_density(standardize(x[i], mean[i], inverse_sigma[i]).z, log_std[i]);
}

FASTRL_CLONES_256 void entropies(const double* log_std, int64_t n, double* entropy) {
  for (int64_t i = 0; i < n; ++i) entropy[i] = normal_entropy(log_std[i]);
}

FASTRL_CLONES_256 void draws(const double* mean, const double* sigma, const double* log_std, const double* noise,
                             int64_t n, double* action, double* density) {
  for (int64_t i = 0; i < n; ++i) action[i] = mean[i] + sigma[i] * noise[i];
  for (int64_t i = 0; i < n; ++i) density[i] = normal_log_density(noise[i], log_std[i]);
}

FASTRL_CLONES_256 void gradients(const double* x, const double* mean, const double* inverse_sigma, const double* gl,
                                 const double* gh, int64_t n, double* g_mean, double* g_action, double* g_log_std) {
  for (int64_t i = 0; i < n; ++i) {
    const Standardized s = standardize(x[i], mean[i], inverse_sigma[i]);
    g_mean[i] = gl[i] * s.z_over_sigma;
    g_action[i] = -g_mean[i];
    g_log_std[i] = gl[i] * (s.z * s.z - 1.0) + gh[i];
  }
}

FASTRL_CLONES_256 void draw_gradients(const double* ga, const double* sigma, const double* noise, const double* gl,
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
    stage(a_, c, log_std.x, T());
    exponentials(log_std.x, sign_, c.padded(), e.x);
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
  if (g) stage(Columns{reinterpret_cast<const char*>(g), sizeof(T), 0}, c, x, T());
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
    stage(action, c, x.x, T());
    stage(mean, c, m.x, T());
    log_densities(x.x, m.x, scale.e.x, scale.log_std.x, n, term.x);
    put_row_sums(term.x, c, columns, 0.0, log_prob_carry, log_prob);
    entropies(scale.log_std.x, n, term.x);
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
    stage(mean, c, m.x, T());
    if (noise.data)
      stage(noise, c, eps.x, T());
    else
      widen(normals.draw(seed, counter, at, c.size()), n, eps.x);
    draws(m.x, scale.e.x, scale.log_std.x, eps.x, n, x.x, term.x);
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
    stage(action, c, x.x, T());
    stage(mean, c, m.x, T());
    stage_row_grads(grad_log_prob, c, gl.x);
    stage_row_grads(grad_entropy, c, gh.x);
    gradients(x.x, m.x, scale.e.x, gl.x, gh.x, c.padded(), g_mean.x, g_action.x, g_log_std.x);
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
    stage(noise, c, eps.x, T());
    if (grad_action.data) stage(grad_action, c, ga.x, T());
    stage_row_grads(grad_log_prob, c, gl.x);
    draw_gradients(ga.x, scale.e.x, eps.x, gl.x, c.padded(), g.x);
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

void fill_uniform(uint64_t seed, uint64_t counter, int64_t n, double* element) {
  alignas(64) uint64_t bits[kChunk];
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t m = n - i < kChunk ? n - i : kChunk;
    philox_blocks(seed, counter + static_cast<uint64_t>(i), (m + 15) / 16 * 16, bits, nullptr);
    uniforms(bits, m, element + i);
  }
}

void fill_normal(uint64_t seed, uint64_t counter, int64_t n, double* element) {
  Normals<double> normals;
  for (int64_t i = 0; i < n; i += kNormals) {
    const int64_t m = n - i < kNormals ? n - i : kNormals;
    std::memcpy(element + i, normals.draw(seed, counter, i, m), static_cast<size_t>(m) * sizeof(double));
  }
}

template <class T>
const T* Normals<T>::draw(uint64_t seed, uint64_t counter, int64_t first, int64_t n) {
  constexpr int64_t kMost = kNormals / 2 + 32;
  alignas(64) uint32_t first_words[kMost], second_words[kMost];
  alignas(64) T radius[kMost];
  const int64_t skip = first % 4, blocks = (normal_blocks(skip + n) + 7) / 8 * 8;  // whole vectors
  philox_pairs(seed, counter + static_cast<uint64_t>(first / 4), blocks, first_words, second_words);
  radii(first_words, 2 * blocks, radius);
  turn(radius, second_words, 2 * blocks, numbers_);
  return numbers_ + skip;
}

template class Normals<float>;
template class Normals<double>;

}  // namespace fastrl
