// Small multilayer perceptrons side by side: forward, and backward to parameters and inputs. Sizes are chosen at run
// time; fastrl/kernels/mlp says what is computed.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "core/common.h"

namespace fastrl {

enum class Activation : int { none, relu, tanh, silu };

// Linear, LayerNorm if there is one (of each of `groups` equal parts), activation. The offsets are into a network's
// part of the vector; a dueling head's matrix is made of two streams (`advantage_*` >= 0).
struct MlpStep {
  int64_t in = 0, out = 0;
  Activation activation = Activation::none;
  int groups = 0;  // 0: no LayerNorm
  int64_t weight = 0, bias = 0, scale = -1, shift = -1;
  int64_t advantage_weight = -1, advantage_bias = -1, atoms = 1;
};

// Rows of the concatenated inputs: `columns` of each part, strides in floats.
struct MlpPart {
  const float* data;
  int64_t columns, row, column;
};

// Memory that only grows: nothing is allocated in a call after the first of its size.
class Arena {
 public:
  float* take(int64_t n) {
    n = (n + 15) / 16 * 16;
    if (used_ + n > size()) return nullptr;
    float* p = begin_ + used_;
    used_ += n;
    return p;
  }
  // Room for n numbers, from the start again.
  void reset(int64_t n);

 private:
  int64_t size() const { return room_; }
  std::vector<float> data_;
  float* begin_ = nullptr;
  int64_t used_ = 0, room_ = 0;
};

class Mlp {
 public:
  static constexpr double kEps = 1e-5;  // torch.nn.LayerNorm's

  Mlp(std::vector<int64_t> sizes, Activation activation, int64_t n, bool layer_norm, int64_t dueling);

  int64_t inputs() const { return steps_.front().in; }
  int64_t outputs() const { return steps_.back().out; }
  int64_t networks() const { return n_; }
  int64_t per_network() const { return per_network_; }
  const std::vector<MlpStep>& steps() const { return steps_; }
  double microseconds(int64_t rows, int64_t networks) const;
  std::mutex& busy() { return busy_; }

  // out [networks, rows, outputs] of the first `networks`.
  void forward(const float* vector, const std::vector<MlpPart>& x, int64_t rows, int64_t networks, float* out,
               int threads);
  // The same, and what a backward pass needs is kept.
  void forward_cached(const float* vector, const std::vector<MlpPart>& x, int64_t rows, int64_t networks, float* out,
                      int threads);
  int64_t cached_rows() const { return rows_; }
  int64_t cached_networks() const { return networks_; }
  // From d_out [networks, rows, outputs]: the gradient of all parameters if `grad`; d_inputs [rows, last - first], the
  // sum over the networks, of columns [first, last) of the inputs if `d_inputs`.
  void backward(const float* d_out, float* grad, float* d_inputs, int64_t first, int64_t last, int threads);

  // For a kernel that makes the inputs itself: `prepare`, and then blocks of up to kBlockRows rows of the first network
  // from any number of threads. input [rows, input_stride()], zeros after the inputs; out [rows, outputs].
  static constexpr int64_t kBlockRows = 64;
  void prepare(const float* vector);
  int64_t input_stride() const;
  int64_t block_scratch() const;
  // `start`: what the first layer's sums start from in the place of the bias, first_start's of the first `skipped`
  // inputs: a row of `start_row` numbers for each, 0 for one row for all.
  void run_block(const float* input, int64_t rows, float* out, float* scratch, const float* start = nullptr,
                 int64_t start_row = 0, int64_t skipped = 0) const;
  // Floats of a row of `start`; 0: this network has none.
  int64_t start_size() const;
  // The bias and the share of the first `columns` inputs in the first layer's sums.
  void first_start(const float* input, int64_t columns, float* start) const;

 private:
  friend struct MlpPass;
  struct Packed {  // of a layer of a network, rows padded
    float *transposed, *weight, *bias, *scale, *shift;
  };
  struct Kept {  // of a layer, for all networks [networks, rows, ...]
    float *output, *slope, *normal, *inverse;
  };
  void pack(const float* vector, int64_t networks, bool both, Arena& arena, std::vector<Packed>& packed,
            int threads) const;
  void fill(const MlpStep& s, const float* p, const Packed& q) const;
  void give_back(float* const* sums, const MlpStep& s, float* grad) const;

  std::vector<MlpStep> steps_;
  int64_t n_, per_network_, widest_;
  std::mutex busy_;
  Arena cached_weights_, cache_;
  std::vector<Packed> packed_, cached_packed_;
  std::vector<Kept> kept_;
  float* input_ = nullptr;
  int64_t rows_ = 0, networks_ = 0;
};

}  // namespace fastrl
