#include "mlp/mlp.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include "core/levels.h"
#include "core/parallel.h"
#include "mlp/pass.h"

namespace fastrl {

using namespace mlp;

namespace {
constexpr int64_t kFew = 2;  // rows that are not worth packing the weights for

// A dueling head as one matrix [out, in] (rows `row` apart) and bias: Q = V + A - mean A is linear in the two streams,
// for each atom by itself. Outputs are [actions, atoms].
void dueling_head(const MlpStep& s, const float* p, float* w, int64_t row, float* b) {
  const int64_t half = s.in / 2, n = s.out, atoms = s.atoms;
  const float share = static_cast<float>(atoms) / static_cast<float>(n);
  for (int64_t j = 0; j < atoms; ++j) {
    const float *value = p + s.weight + j * half, *advantage = p + s.advantage_weight;
    for (int64_t i = 0; i < half; ++i) {
      float mean = 0;
      for (int64_t a = j; a < n; a += atoms) mean += advantage[a * half + i];
      mean *= share;
      for (int64_t a = j; a < n; a += atoms)
        w[a * row + i] = value[i], w[a * row + half + i] = advantage[a * half + i] - mean;
    }
    float mean = 0;
    for (int64_t a = j; a < n; a += atoms) mean += p[s.advantage_bias + a];
    mean *= share;
    for (int64_t a = j; a < n; a += atoms) b[a] = p[s.bias + j] + (p[s.advantage_bias + a] - mean);
  }
}
// What a call needs until it ends: one for all networks of a thread, so that it stays in the cache.
thread_local Arena scratch, weights_once;
}  // namespace

void Arena::reset(int64_t n) {
  used_ = 0;
  if (n <= room_) return;
  data_ = std::vector<float>(static_cast<size_t>(n + 16));
  void* p = data_.data();
  size_t space = data_.size() * sizeof(float);
  begin_ = static_cast<float*>(std::align(64, static_cast<size_t>(n) * sizeof(float), p, space));
  room_ = n;
}

Mlp::Mlp(std::vector<int64_t> sizes, Activation activation, int64_t n, bool layer_norm, int64_t dueling) : n_(n) {
  const size_t layers = sizes.size() - 1;
  int64_t at = 0;
  const auto next = [&](int64_t count) {
    at += count;
    return at - count;
  };
  for (size_t k = 0; k < layers; ++k) {
    const bool last = k + 1 == layers, streams = dueling > 0 && k + 2 >= layers;
    MlpStep s;
    s.in = sizes[k] * (streams && last ? 2 : 1), s.out = sizes[k + 1] * (streams && !last ? 2 : 1);
    if (streams && last) {
      s.atoms = dueling, s.weight = next(sizes[k] * dueling), s.bias = next(dueling);
      s.advantage_weight = next(sizes[k] * s.out), s.advantage_bias = next(s.out);
    } else {
      s.weight = next(s.in * s.out), s.bias = next(s.out);
    }
    if (!last) {
      s.activation = activation;
      s.groups = layer_norm ? (streams ? 2 : 1) : 0;
      if (layer_norm) s.scale = next(s.out), s.shift = next(s.out);
    }
    steps_.push_back(s);
  }
  per_network_ = at;
  widest_ = 0;
  for (const MlpStep& s : steps_) widest_ = std::max({widest_, stride(s.in), stride(s.out)});
  packed_.resize(static_cast<size_t>(n) * layers), cached_packed_.resize(packed_.size());
  kept_.resize(layers);
}

double Mlp::microseconds(int64_t rows, int64_t networks) const {
  return 3e-5 * static_cast<double>(per_network_) * static_cast<double>(rows) * static_cast<double>(networks);
}

void Mlp::pack(const float* vector, int64_t networks, bool both, Arena& arena, std::vector<Packed>& packed,
               int threads) const {
  int64_t room = 0;
  for (const MlpStep& s : steps_)
    room += padded(s.in * stride(s.out)) + padded(s.out * stride(s.in)) + 3 * stride(s.out) + 64;
  arena.reset(room * networks);
  const int64_t layers = static_cast<int64_t>(steps_.size()), units = networks * layers;
  for (int64_t unit = 0; unit < units; ++unit) {
    const MlpStep& s = steps_[static_cast<size_t>(unit % layers)];
    Packed& q = packed[static_cast<size_t>(unit)];
    const bool narrow = s.out <= kNarrow;
    q.bias = arena.take(stride(s.out));
    q.weight = both || narrow || s.advantage_weight >= 0 ? arena.take(s.out * stride(s.in)) : nullptr;
    q.transposed = narrow ? nullptr : arena.take(s.in * stride(s.out));
    q.scale = s.groups > 0 ? arena.take(stride(s.out)) : nullptr;
    q.shift = s.groups > 0 ? arena.take(stride(s.out)) : nullptr;
  }
  parallel_for(units, threads, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit)
      fill(steps_[static_cast<size_t>(unit % layers)], vector + unit / layers * per_network_,
           packed[static_cast<size_t>(unit)]);
  });
}

// A layer of the network at p.
void Mlp::fill(const MlpStep& s, const float* p, const Packed& q) const {
  std::fill_n(q.bias, stride(s.out), 0.0f);
  const float* w = p + s.weight;
  int64_t row = s.in;
  if (s.advantage_weight >= 0) {
    row = stride(s.in), w = q.weight;
    for (int64_t j = 0; j < s.out; ++j) std::fill_n(q.weight + j * row + s.in, row - s.in, 0.0f);
    dueling_head(s, p, q.weight, row, q.bias);
  } else {
    std::copy_n(p + s.bias, s.out, q.bias);
    for (int64_t j = 0; q.weight && j < s.out; ++j) {
      float* to = q.weight + j * stride(s.in);
      std::memcpy(to, w + j * s.in, static_cast<size_t>(s.in) * sizeof(float));
      std::fill(to + s.in, to + stride(s.in), 0.0f);
    }
  }
  if (q.transposed) tiles::transpose(w, row, s.out, s.in, q.transposed, stride(s.out), padded(s.out));
  if (s.groups > 0) std::copy_n(p + s.scale, s.out, q.scale), std::copy_n(p + s.shift, s.out, q.shift);
}

namespace {

struct Level {
  void (*forward)(const MlpPass&, int64_t k, int64_t row, int64_t n, float* scratch);
  void (*backward)(const MlpPass&, int64_t k, int64_t row, int64_t n, float* scratch, float* sums, bool first);
  void (*few)(const MlpPass&, const float* vector, int64_t k, int64_t row, float* scratch);
  void (*first_start)(const MlpPass&, int64_t columns, float* start);
};

#define FASTRL_MLP_LEVEL(name, target, V, m)                                                                    \
  target void forward_##name(const MlpPass& p, int64_t k, int64_t row, int64_t n, float* scratch) {             \
    p.forward<V, m>(k, row, n, scratch);                                                                        \
  }                                                                                                             \
  target void backward_##name(const MlpPass& p, int64_t k, int64_t row, int64_t n, float* scratch, float* sums, \
                              bool first) {                                                                     \
    p.backward<V, m>(k, row, n, scratch, sums, first);                                                          \
  }                                                                                                             \
  target void few_##name(const MlpPass& p, const float* vector, int64_t k, int64_t row, float* scratch) {       \
    p.forward_few<V>(vector, k, row, scratch);                                                                  \
  }                                                                                                             \
  target void first_start_##name(const MlpPass& p, int64_t columns, float* start) {                             \
    p.begin_first<V, m>(columns, start);                                                                        \
  }                                                                                                             \
  constexpr Level level_##name{forward_##name, backward_##name, few_##name, first_start_##name};

FASTRL_MLP_LEVEL(default, , tiles::Vector<4>, 4)
#if FASTRL_X86_LEVELS
FASTRL_MLP_LEVEL(v3, FASTRL_TARGET_3, tiles::Vector<8>, 4)
FASTRL_MLP_LEVEL(v4, FASTRL_TARGET_4, tiles::Vector<16>, 8)
#endif

const Level& level_here() {
#if FASTRL_X86_LEVELS
  if (kLevel >= 3) return kLevel >= 4 ? level_v4 : level_v3;
#endif
  return level_default;
}

void copy_inputs(const std::vector<MlpPart>& x, int64_t rows, int64_t width, float* to) {
  int64_t at = 0;
  for (const MlpPart& part : x) {
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = part.data + i * part.row;
      float* row = to + i * width + at;
      if (part.column == 1)
        std::memcpy(row, from, static_cast<size_t>(part.columns) * sizeof(float));
      else
        for (int64_t j = 0; j < part.columns; ++j) row[j] = from[j * part.column];
    }
    at += part.columns;
  }
  for (int64_t i = 0; i < rows; ++i) std::fill(to + i * width + at, to + (i + 1) * width, 0.0f);
}

// task(network, piece, first row, end row) for all pieces of all networks.
template <class F>
void for_pieces(int64_t rows, int64_t networks, int threads, F&& task) {
  const int64_t pieces = count_pieces(rows), size = piece_rows(rows);
  parallel_for(pieces * networks, threads, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t piece = unit % pieces;
      task(unit / pieces, piece, piece * size, std::min(rows, (piece + 1) * size));
    }
  });
}

}  // namespace

void Mlp::forward(const float* vector, const std::vector<MlpPart>& x, int64_t rows, int64_t networks, float* out,
                  int threads) {
  const int64_t width = stride(inputs());
  const bool few = rows <= kFew;
  const int64_t pieces = count_pieces(rows), each = 2 * widest_ * (few ? 1 : kBlock);
  scratch.reset(rows * width + pieces * networks * each + 64);
  float *input = scratch.take(rows * width), *work = scratch.take(pieces * networks * each);
  copy_inputs(x, rows, width, input);
  MlpPass pass{};
  pass.owner = this, pass.packed = &packed_, pass.input = input, pass.rows = rows, pass.out = out;
  const Level& level = level_here();
  if (few) {
    for (int64_t k = 0; k < networks; ++k)
      for (int64_t i = 0; i < rows; ++i) level.few(pass, vector, k, i, work);
    return;
  }
  pack(vector, networks, false, weights_once, packed_, threads);
  for_pieces(rows, networks, threads, [&](int64_t k, int64_t piece, int64_t row, int64_t end) {
    for (; row < end; row += kBlock)
      level.forward(pass, k, row, std::min(kBlock, end - row), work + (k * pieces + piece) * each);
  });
}

void Mlp::forward_cached(const float* vector, const std::vector<MlpPart>& x, int64_t rows, int64_t networks, float* out,
                         int threads) {
  rows_ = 0;  // nothing to go back through, should memory run out
  const int64_t width = stride(inputs()), pieces = count_pieces(rows), each = 2 * widest_ * kBlock;
  int64_t room = rows * width + 64;
  for (const MlpStep& s : steps_) room += networks * rows * (3 * stride(s.out) + s.groups) + 64;
  cache_.reset(room);
  input_ = cache_.take(rows * width);
  for (size_t l = 0; l < steps_.size(); ++l) {
    const MlpStep& s = steps_[l];
    const int64_t n = networks * rows * stride(s.out);
    const bool hidden = l + 1 < steps_.size();
    kept_[l].output = hidden ? cache_.take(n) : nullptr;
    kept_[l].slope = s.activation == Activation::silu ? cache_.take(n) : nullptr;
    kept_[l].normal = s.groups > 0 ? cache_.take(n) : nullptr;
    kept_[l].inverse = s.groups > 0 ? cache_.take(networks * rows * s.groups) : nullptr;
  }
  copy_inputs(x, rows, width, input_);
  pack(vector, networks, true, cached_weights_, cached_packed_, threads);
  scratch.reset(pieces * networks * each);
  float* work = scratch.take(pieces * networks * each);
  MlpPass pass{};
  pass.owner = this, pass.packed = &cached_packed_, pass.kept = &kept_, pass.input = input_, pass.rows = rows;
  pass.out = out;
  const Level& level = level_here();
  for_pieces(rows, networks, threads, [&](int64_t k, int64_t piece, int64_t row, int64_t end) {
    for (; row < end; row += kBlock)
      level.forward(pass, k, row, std::min(kBlock, end - row), work + (k * pieces + piece) * each);
  });
  rows_ = rows, networks_ = networks;
}

static_assert(Mlp::kBlockRows == kBlock);
void Mlp::prepare(const float* vector) { pack(vector, 1, false, cached_weights_, cached_packed_, 1); }
int64_t Mlp::input_stride() const { return stride(inputs()); }
int64_t Mlp::block_scratch() const { return 2 * widest_ * kBlock; }
void Mlp::run_block(const float* input, int64_t rows, float* out, float* scratch, const float* start, int64_t start_row,
                    int64_t skipped) const {
  MlpPass pass{};
  pass.owner = this, pass.packed = &cached_packed_, pass.input = input, pass.rows = rows, pass.out = out;
  pass.start = start, pass.start_row = start_row, pass.skipped = skipped;
  level_here().forward(pass, 0, 0, rows, scratch);
}
int64_t Mlp::start_size() const { return steps_.front().out > kNarrow ? stride(steps_.front().out) : 0; }
void Mlp::first_start(const float* input, int64_t columns, float* start) const {
  MlpPass pass{};
  pass.owner = this, pass.packed = &cached_packed_, pass.input = input;
  level_here().first_start(pass, columns, start);
}

// The gradients of a dueling head from those of its matrix, `step` apart: of Q = V + A - mean A what V gets is the sum,
// and what A gets has mean 0.
static void split_streams(const float* of_value, const float* of_advantage, int64_t step, int64_t n, float* value,
                          float* advantage, int64_t advantage_step) {
  float sum = 0, mean = 0;
  for (int64_t a = 0; a < n; ++a) sum += of_value[a * step], mean += of_advantage[a * step];
  mean /= static_cast<float>(n);
  *value = sum;
  for (int64_t a = 0; a < n; ++a) advantage[a * advantage_step] = of_advantage[a * step] - mean;
}

// The sums of a layer's pieces, added up in order, as its gradient.
void Mlp::give_back(float* const* sums, const MlpStep& s, float* grad) const {
  float* at = sums[0];
  const MlpPass::Sums g = MlpPass::sums_at(s, at);
  for (int64_t p = 1; p < count_pieces(rows_); ++p) {
    at = sums[p];
    const MlpPass::Sums more = MlpPass::sums_at(s, at);
    const auto add = [](float* x, const float* y, int64_t n) {
      FASTRL_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) x[i] += y[i];
    };
    for (int64_t j = 0; j < s.out; ++j) add(g.weight + j * stride(s.in), more.weight + j * stride(s.in), s.in);
    add(g.bias, more.bias, s.out);
    if (s.groups > 0) add(g.scale, more.scale, s.out), add(g.shift, more.shift, s.out);
  }
  if (s.groups > 0) std::copy_n(g.scale, s.out, grad + s.scale), std::copy_n(g.shift, s.out, grad + s.shift);
  if (s.advantage_weight < 0) {
    for (int64_t j = 0; j < s.out; ++j)
      std::memcpy(grad + s.weight + j * s.in, g.weight + j * stride(s.in), static_cast<size_t>(s.in) * sizeof(float));
    std::copy_n(g.bias, s.out, grad + s.bias);
    return;
  }
  const int64_t half = s.in / 2, row = stride(s.in), atoms = s.atoms, actions = s.out / atoms;
  for (int64_t j = 0; j < atoms; ++j) {
    const float* of = g.weight + j * row;
    for (int64_t i = 0; i < half; ++i)
      split_streams(of + i, of + half + i, row * atoms, actions, grad + s.weight + j * half + i,
                    grad + s.advantage_weight + j * half + i, half * atoms);
    split_streams(g.bias + j, g.bias + j, atoms, actions, grad + s.bias + j, grad + s.advantage_bias + j, atoms);
  }
}

void Mlp::backward(const float* d_out, float* grad, float* d_inputs, int64_t first, int64_t last, int threads) {
  const int64_t rows = rows_, networks = networks_, pieces = count_pieces(rows), units = pieces * networks;
  if (rows == 0) {
    if (grad) std::fill_n(grad, networks * per_network_, 0.0f);
    return;
  }
  const MlpStep& bottom = steps_.front();
  const int64_t each = 2 * widest_ * kBlock, sums = grad ? MlpPass::sums_size(steps_) : 0;
  const int64_t columns = d_inputs ? last - first : 0, width = padded(columns);
  scratch.reset(units * (each + sums) + networks * (bottom.out + rows) * width + 64);
  float* work = scratch.take(units * each);
  float* all_sums = scratch.take(units * sums);
  float *weights = scratch.take(networks * bottom.out * width), *d_x = scratch.take(networks * rows * width);
  MlpPass pass{};
  pass.owner = this, pass.packed = &cached_packed_, pass.kept = &kept_, pass.input = input_, pass.rows = rows;
  pass.d_out = d_out, pass.wants_parameters = grad != nullptr, pass.columns = columns;
  if (d_inputs) {
    for (int64_t k = 0; k < networks; ++k)
      for (int64_t j = 0; j < bottom.out; ++j) {
        float* to = weights + (k * bottom.out + j) * width;
        std::copy_n(pass.layer(k, 0).weight + j * stride(bottom.in) + first, columns, to);
        std::fill(to + columns, to + width, 0.0f);
      }
    pass.input_weights = weights, pass.d_inputs = d_x;
  }
  const Level& level = level_here();
  for_pieces(rows, networks, threads, [&](int64_t k, int64_t piece, int64_t row, int64_t end) {
    const int64_t unit = k * pieces + piece;
    for (bool start = true; row < end; row += kBlock, start = false)
      level.backward(pass, k, row, std::min(kBlock, end - row), work + unit * each, all_sums + unit * sums, start);
  });
  const int64_t layers = static_cast<int64_t>(steps_.size());
  if (grad)
    parallel_for(networks * layers, threads, [&](int64_t begin, int64_t end) {
      std::array<float*, kPieces> pieces_of;
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t k = unit / layers, l = unit % layers;
        for (int64_t p = 0; p < pieces; ++p) {
          pieces_of[static_cast<size_t>(p)] = all_sums + (k * pieces + p) * sums;
          for (int64_t before = 0; before < l; ++before)
            MlpPass::sums_at(steps_[static_cast<size_t>(before)], pieces_of[static_cast<size_t>(p)]);
        }
        give_back(pieces_of.data(), steps_[static_cast<size_t>(l)], grad + k * per_network_);
      }
    });
  for (int64_t i = 0; d_inputs && i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      float sum = d_x[i * width + j];
      for (int64_t k = 1; k < networks; ++k) sum += d_x[(k * rows + i) * width + j];
      d_inputs[i * columns + j] = sum;
    }
}

}  // namespace fastrl
