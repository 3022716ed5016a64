#include <algorithm>

#include "core/levels.h"
#include "core/parallel.h"
#include "curvature/mlp_fisher.h"
#include "mlp/pass.h"

namespace fastrl {
namespace {

using namespace mlp;

// Rows of a piece: enough that its sums are worth their memory, few enough that Ctrl-C is answered between pieces.
constexpr int64_t kLeast = 8 * kBlock, kMost = 32 * kBlock;

// What a product needs of each layer beside what refresh keeps.
struct Direction {
  float *transposed, *bias;  // of v: [in, out], [out]
};
// Of one piece of the rows and one layer.
struct Sums {
  float *tangents, *weight, *bias;  // [kBlock, out], [out, in], [out]
};

// Rows [row, row + rows) of the batch, the first ones of a piece or not.
template <class V, int m>
FASTRL_INLINE void block(const MlpFisher& f, const Direction* v, int64_t row, int64_t rows, const Sums* sums,
                         bool first) {
  const size_t count = f.layers.size();
  const auto times_slope = [&](size_t k, float* x) {
    const FisherLayer& l = f.layers[k];
    if (l.activation == Activation::none) return;
    const int64_t width = stride(l.out);
    const float* h = (k + 1 < count ? f.layers[k + 1].input : l.output) + row * width;
    const float* slopes = l.slopes ? l.slopes + row * width : nullptr;
    MlpPass::times_slope(l.activation, h, slopes, x, rows * width);
  };
  for (size_t k = 0; k < count; ++k) {
    const FisherLayer& l = f.layers[k];
    const int64_t in = stride(l.in), width = stride(l.out), columns = padded(l.out);
    float* t = sums[k].tangents;
    tiles::multiply<V, m, false>({l.input + row * in, in, 1}, v[k].transposed, width, {v[k].bias, 0}, t, width, rows,
                                 columns, l.in);
    if (k > 0)
      tiles::multiply<V, m, false>({sums[k - 1].tangents, in, 1}, l.transposed, width, {t, width}, t, width, rows,
                                   columns, l.in);
    times_slope(k, t);
  }
  const int64_t outputs = f.layers[count - 1].out, width = stride(outputs);
  float* g = sums[count - 1].tangents;
  const float each = 1.0f / static_cast<float>(f.rows);
  for (int64_t i = 0; i < rows; ++i, g += width) {
    const float* s = f.scale + (f.ends.empty() ? 0 : row + i) * width;
    if (!f.ends.empty()) {
      int64_t begin = 0;
      for (const int64_t end : f.ends) {
        float mean = 0;
        for (int64_t j = begin; j < end; ++j) mean += s[j] * g[j];
        for (int64_t j = begin; j < end; ++j) g[j] = s[j] * (g[j] - mean) * each;
        begin = end;
      }
    } else {
      for (int64_t j = 0; j < outputs; ++j) g[j] *= s[j];
    }
  }
  for (size_t k = count; k-- > 0;) {
    const FisherLayer& l = f.layers[k];
    const int64_t in = stride(l.in), out = stride(l.out);
    g = sums[k].tangents;
    times_slope(k, g);
    float *weight = sums[k].weight, *bias = sums[k].bias;
    tiles::multiply<V, m, false>({g, 1, out}, l.input + row * in, in, {first ? nullptr : weight, in}, weight, in, l.out,
                                 padded(l.in), rows);
    if (first) std::fill_n(bias, l.out, 0.0f);
    for (int64_t i = 0; i < rows; ++i) {
      FASTRL_INDEPENDENT
      for (int64_t j = 0; j < l.out; ++j) bias[j] += g[i * out + j];
    }
    if (k > 0)
      tiles::multiply<V, m, false>({g, out, 1}, l.weight, in, {nullptr, 0}, sums[k - 1].tangents, in, rows,
                                   padded(l.in), l.out);
  }
}

void block_1(const MlpFisher& f, const Direction* v, int64_t row, int64_t rows, const Sums* s, bool first) {
  block<tiles::Vector<4>, 4>(f, v, row, rows, s, first);
}
#if FASTRL_X86_LEVELS
FASTRL_TARGET_3 void block_3(const MlpFisher& f, const Direction* v, int64_t row, int64_t rows, const Sums* s,
                             bool first) {
  block<tiles::Vector<8>, 4>(f, v, row, rows, s, first);
}
FASTRL_TARGET_4 void block_4(const MlpFisher& f, const Direction* v, int64_t row, int64_t rows, const Sums* s,
                             bool first) {
  block<tiles::Vector<16>, 8>(f, v, row, rows, s, first);
}
#endif
void block_here(const MlpFisher& f, const Direction* v, int64_t row, int64_t rows, const Sums* s, bool first) {
#if FASTRL_X86_LEVELS
  at_level<block_1, block_3, block_4>(f, v, row, rows, s, first);
#else
  block_1(f, v, row, rows, s, first);
#endif
}

thread_local Arena scratch;

}  // namespace

double MlpFisher::microseconds() const {
  double products = 0;
  for (const FisherLayer& l : layers) products += 4.0 * static_cast<double>(l.in) * static_cast<double>(l.out);
  return products * static_cast<double>(rows) * 3e-5;
}

void MlpFisher::product(const float* v, double damping, float* out, Threads threads) const {
  const size_t count = layers.size();
  const int64_t size = std::clamp(piece_rows(rows), kLeast, kMost), pieces = (rows + size - 1) / size;
  int64_t room = 0;
  for (const FisherLayer& l : layers) {
    const int64_t in = stride(l.in), width = stride(l.out);
    room += l.in * width + width + pieces * (kBlock * width + l.out * in + width + 48);
  }
  scratch.reset(room);
  std::vector<Direction> direction;
  for (const FisherLayer& l : layers) {
    const int64_t width = stride(l.out);
    const Direction d{scratch.take(l.in * width), scratch.take(width)};
    if (l.weight_at >= 0)
      tiles::transpose(v + l.weight_at, l.in, l.out, l.in, d.transposed, width, padded(l.out));
    else
      std::fill_n(d.transposed, l.in * width, 0.0f);
    std::fill_n(d.bias, width, 0.0f);
    if (l.bias_at >= 0) std::copy_n(v + l.bias_at, l.out, d.bias);
    direction.push_back(d);
  }
  std::vector<Sums> sums;
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (const FisherLayer& l : layers)
      sums.push_back(
          {scratch.take(kBlock * stride(l.out)), scratch.take(l.out * stride(l.in)), scratch.take(stride(l.out))});
  parallel_for(pieces, threads, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t start = piece * size, last = std::min(rows, start + size);
      for (int64_t row = start; row < last; row += kBlock)
        block_here(*this, direction.data(), row, std::min(kBlock, last - row),
                   &sums[static_cast<size_t>(piece) * count], row == start);
    }
  });
  const float d = static_cast<float>(damping);
  for (int64_t i = 0; i < n; ++i) out[i] = d * v[i];
  for (int64_t i = 0; log_std_at >= 0 && i < log_std_size; ++i) out[log_std_at + i] += 2.0f * v[log_std_at + i];
  for (size_t at = 0; at < sums.size(); ++at) {
    const FisherLayer& l = layers[at % count];
    const Sums& s = sums[at];
    const auto add = [](float* x, const float* y, int64_t count) {
      FASTRL_INDEPENDENT
      for (int64_t i = 0; i < count; ++i) x[i] += y[i];
    };
    for (int64_t j = 0; l.weight_at >= 0 && j < l.out; ++j)
      add(out + l.weight_at + j * l.in, s.weight + j * stride(l.in), l.in);
    if (l.bias_at >= 0) add(out + l.bias_at, s.bias, l.out);
  }
}

}  // namespace fastrl
