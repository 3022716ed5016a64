// Fisher products of small MLPs, F v = (1/B) J^T M J v: blocks of rows go through all layers, tangents forward and
// cotangents backward, while they are in the cache. For wide layers a BLAS is as fast.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/common.h"
#include "core/parallel.h"

namespace fastrl {

// Zeros to begin with, on a cache line.
class Floats {
 public:
  Floats() = default;
  Floats(Floats&&) = default;
  Floats& operator=(Floats&&) = default;
  void resize(int64_t n) {
    data_.assign(static_cast<size_t>(n + 16), 0.0f);
    void* p = data_.data();
    size_t space = data_.size() * sizeof(float);
    begin_ = static_cast<float*>(std::align(64, static_cast<size_t>(n) * sizeof(float), p, space));
  }
  float* get() { return begin_; }
  const float* get() const { return begin_; }

 private:
  std::vector<float> data_;
  float* begin_ = nullptr;
};

enum class MlpActivation : int { none, tanh, relu, other };

inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// One Linear layer and the activation after it. Rows of matrices are padded with zeros to 16 columns. `*_at`: where the
// parameters begin in the flat vector; -1: they are not in it.
struct MlpLayer {
  int64_t in, out;
  MlpActivation activation;
  int64_t weight_at, bias_at;
  Floats weight, transposed;  // [out, in] and [in, out]
  Floats input;               // [rows, in]
  Floats slopes;              // [rows, out] for activation `other`
  Floats output;              // [rows, out] of the last layer, if it has an activation
};

struct MlpFisher {
  std::vector<MlpLayer> layers;
  int64_t n = 0, rows = 0;
  int64_t log_std_at = -1, log_std_size = 0;
  bool categorical = false;
  Floats scale;  // Gaussian: 1 / (B sigma^2) [outputs]; categorical: p [rows, outputs]

  // out = F v + damping v, both [n].
  void product(const float* v, double damping, float* out, Threads threads) const;
  double microseconds() const;
};

}  // namespace fastrl
