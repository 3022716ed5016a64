#include "curvature/mlp_fisher.h"

#include <algorithm>
#include <cstring>

#include "core/levels.h"
#include "core/parallel.h"

namespace fastrl {
namespace {

constexpr int64_t kBlock = 64;           // rows at a time
constexpr int64_t kPieceRows = 32 * 64;  // rows whose sums are one task's: so the result does not depend on the threads

#if defined(__GNUC__)
template <int n>
struct VectorOf {
  typedef float type __attribute__((vector_size(4 * n)));
};
template <int n>
using Vector = typename VectorOf<n>::type;
#else
template <int n>
struct Vector {
  float x[n];
  Vector& operator+=(const Vector& o) {
    for (int i = 0; i < n; ++i) x[i] += o.x[i];
    return *this;
  }
  friend Vector operator*(float s, const Vector& v) {
    Vector r;
    for (int i = 0; i < n; ++i) r.x[i] = s * v.x[i];
    return r;
  }
};
#endif

template <class V>
FASTRL_INLINE V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
FASTRL_INLINE void store(float* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// A tile of C: m rows (a constant) of `wide` vectors. a(i, k) is a[i * a_row + k * a_column].
template <class V, int m, int wide>
FASTRL_INLINE void tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, const float* c0,
                        int64_t c0_row, float* c, int64_t c_row, int64_t k) {
  constexpr int64_t lanes = sizeof(V) / sizeof(float);
  V sum[m][wide];
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < wide; ++j) sum[i][j] = c0 ? load<V>(c0 + i * c0_row + j * lanes) : V{};
  for (int64_t x = 0; x < k; ++x) {
    V right[wide];
    for (int j = 0; j < wide; ++j) right[j] = load<V>(b + x * b_row + j * lanes);
    for (int i = 0; i < m; ++i) {
      const float left = a[i * a_row + x * a_column];
      for (int j = 0; j < wide; ++j) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < wide; ++j) store<V>(c + i * c_row + j * lanes, sum[i][j]);
}

// C = C0 + A B for C [rows, columns], columns a multiple of 16; C0 null: 0. Rows past `rows` up to a multiple of m are
// computed too.
template <class V, int m>
FASTRL_INLINE void multiply(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                            const float* c0, int64_t c0_row, float* c, int64_t c_row, int64_t rows, int64_t columns,
                            int64_t k) {
  constexpr int64_t lanes = sizeof(V) / sizeof(float);
  int64_t j = 0;
  for (; j + 2 * lanes <= columns; j += 2 * lanes)
    for (int64_t i = 0; i < rows; i += m)
      tile<V, m, 2>(a + i * a_row, a_row, a_column, b + j, b_row, c0 ? c0 + i * c0_row + j : nullptr, c0_row,
                    c + i * c_row + j, c_row, k);
  for (; j < columns; j += lanes)
    for (int64_t i = 0; i < rows; i += m)
      tile<V, m, 1>(a + i * a_row, a_row, a_column, b + j, b_row, c0 ? c0 + i * c0_row + j : nullptr, c0_row,
                    c + i * c_row + j, c_row, k);
}

// What the layers of one product need beside the cached ones.
struct Work {
  std::vector<Floats> v_transposed, v_bias;  // [in, out], [out]
  // Of one task: tangents [kBlock, out] of each layer, and the sums [out, in], [out].
  struct Task {
    std::vector<Floats> tangents, weights, biases;
  };
};

// x [rows, columns] *= activation'
FASTRL_INLINE void times_slope(const MlpLayer& layer, const float* output, int64_t row, int64_t rows, float* x) {
  const int64_t columns = padded(layer.out), n = rows * columns;
  const float* h = output;
  if (layer.activation == MlpActivation::tanh) {
    FASTRL_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) x[i] *= 1.0f - h[i] * h[i];
  } else if (layer.activation == MlpActivation::relu) {
    FASTRL_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) x[i] = h[i] > 0 ? x[i] : 0.0f;
  } else if (layer.activation == MlpActivation::other) {
    const float* s = layer.slopes.get() + row * columns;
    FASTRL_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) x[i] *= s[i];
  }
}

// Rows [row, row + rows) of the batch.
template <class V, int m>
FASTRL_INLINE void block(const MlpFisher& f, const Work& work, int64_t row, int64_t rows, Work::Task& task) {
  const size_t count = f.layers.size();
  const auto output = [&](size_t k) {  // of layer k, for the rows
    const float* all = k + 1 < count ? f.layers[k + 1].input.get() : f.layers[k].output.get();
    return all ? all + row * padded(f.layers[k].out) : nullptr;
  };
  for (size_t k = 0; k < count; ++k) {
    const MlpLayer& l = f.layers[k];
    const int64_t in = padded(l.in), out = padded(l.out);
    float* t = task.tangents[k].get();
    multiply<V, m>(l.input.get() + row * in, in, 1, work.v_transposed[k].get(), out, work.v_bias[k].get(), 0, t, out,
                   rows, out, l.in);
    if (k > 0)
      multiply<V, m>(task.tangents[k - 1].get(), in, 1, l.transposed.get(), out, t, out, t, out, rows, out, l.in);
    times_slope(l, output(k), row, rows, t);
  }
  const int64_t outputs = f.layers[count - 1].out, width = padded(outputs);
  float* g = task.tangents[count - 1].get();
  if (f.categorical) {
    const float each = 1.0f / static_cast<float>(f.rows);
    for (int64_t i = 0; i < rows; ++i) {
      const float* p = f.scale.get() + (row + i) * width;
      float mean = 0;
      for (int64_t j = 0; j < outputs; ++j) mean += p[j] * g[i * width + j];
      for (int64_t j = 0; j < outputs; ++j) g[i * width + j] = p[j] * (g[i * width + j] - mean) * each;
    }
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < width; ++j) g[i * width + j] *= f.scale.get()[j];
  }
  // The rows that only fill the tile up say nothing.
  const int64_t filled = (rows + m - 1) / m * m;
  std::fill(g + rows * width, g + filled * width, 0.0f);
  for (size_t k = count; k-- > 0;) {
    const MlpLayer& l = f.layers[k];
    const int64_t in = padded(l.in), out = padded(l.out);
    g = task.tangents[k].get();
    times_slope(l, output(k), row, rows, g);
    float* sums = task.weights[k].get();
    multiply<V, m>(g, 1, out, l.input.get() + row * in, in, sums, in, sums, in, l.out, in, rows);
    float* bias = task.biases[k].get();
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < out; ++j) bias[j] += g[i * out + j];
    if (k > 0)
      multiply<V, m>(g, out, 1, l.weight.get(), in, nullptr, 0, task.tangents[k - 1].get(), in, rows, in, l.out);
  }
}

// As many rows of as many numbers as fit the registers.
FASTRL_INLINE void block_1(const MlpFisher& f, const Work& w, int64_t row, int64_t rows, Work::Task& t) {
  block<Vector<4>, 4>(f, w, row, rows, t);
}
#if FASTRL_X86_LEVELS
FASTRL_TARGET_3 void block_3(const MlpFisher& f, const Work& w, int64_t row, int64_t rows, Work::Task& t) {
  block<Vector<8>, 4>(f, w, row, rows, t);
}
FASTRL_TARGET_4 void block_4(const MlpFisher& f, const Work& w, int64_t row, int64_t rows, Work::Task& t) {
  block<Vector<16>, 8>(f, w, row, rows, t);
}
#endif
void block_here(const MlpFisher& f, const Work& w, int64_t row, int64_t rows, Work::Task& t) {
#if FASTRL_X86_LEVELS
  at_level<block_1, block_3, block_4>(f, w, row, rows, t);
#else
  block_1(f, w, row, rows, t);
#endif
}

}  // namespace

double MlpFisher::microseconds() const {
  double products = 0;
  for (const MlpLayer& l : layers) products += 4.0 * static_cast<double>(l.in) * static_cast<double>(l.out);
  return products * static_cast<double>(rows) * 3e-5;
}

void MlpFisher::product(const float* v, double damping, float* out, Threads threads) const {
  const size_t count = layers.size();
  Work work;
  work.v_transposed.resize(count), work.v_bias.resize(count);
  for (size_t k = 0; k < count; ++k) {
    const MlpLayer& l = layers[k];
    const int64_t width = padded(l.out);
    work.v_transposed[k].resize(l.in * width), work.v_bias[k].resize(width);
    float *matrix = work.v_transposed[k].get(), *bias = work.v_bias[k].get();
    if (l.weight_at >= 0)
      for (int64_t j = 0; j < l.out; ++j)
        for (int64_t i = 0; i < l.in; ++i) matrix[i * width + j] = v[l.weight_at + j * l.in + i];
    if (l.bias_at >= 0) std::copy_n(v + l.bias_at, l.out, bias);
  }
  const int64_t pieces = (rows + kPieceRows - 1) / kPieceRows;
  std::vector<Work::Task> tasks(static_cast<size_t>(pieces));
  parallel_for(pieces, threads, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      Work::Task& task = tasks[static_cast<size_t>(piece)];
      task.tangents.resize(count), task.weights.resize(count), task.biases.resize(count);
      for (size_t k = 0; k < count; ++k) {
        task.tangents[k].resize(kBlock * padded(layers[k].out));
        task.weights[k].resize(padded(layers[k].out) * padded(layers[k].in));
        task.biases[k].resize(padded(layers[k].out));
      }
      const int64_t last = std::min(rows, (piece + 1) * kPieceRows);
      for (int64_t row = piece * kPieceRows; row < last; row += kBlock)
        block_here(*this, work, row, std::min(kBlock, last - row), task);
    }
  });
  const float d = static_cast<float>(damping);
  for (int64_t i = 0; i < n; ++i) out[i] = d * v[i];
  for (int64_t i = 0; log_std_at >= 0 && i < log_std_size; ++i) out[log_std_at + i] += 2.0f * v[log_std_at + i];
  for (size_t k = 0; k < count; ++k) {
    const MlpLayer& l = layers[k];
    const int64_t in = padded(l.in);
    for (const Work::Task& task : tasks) {
      if (l.weight_at >= 0)
        for (int64_t j = 0; j < l.out; ++j)
          for (int64_t i = 0; i < l.in; ++i) out[l.weight_at + j * l.in + i] += task.weights[k].get()[j * in + i];
      if (l.bias_at >= 0)
        for (int64_t j = 0; j < l.out; ++j) out[l.bias_at + j] += task.biases[k].get()[j];
    }
  }
}

}  // namespace fastrl
