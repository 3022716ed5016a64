// Fisher products of small MLPs, F v = (1/B) J^T M J v: blocks of rows go through all layers, tangents forward and
// cotangents backward, in the tiles and the layout of mlp/.
#pragma once

#include <cstdint>
#include <vector>

#include "core/common.h"
#include "core/parallel.h"
#include "mlp/mlp.h"

namespace fastrl {

// One Linear layer and the activation after it. Rows of matrices are mlp::stride apart. `*_at`: where the parameters
// begin in the flat vector; -1: they are not in it.
struct FisherLayer {
  int64_t in, out;
  Activation activation;
  int64_t weight_at, bias_at;
  float *weight = nullptr, *transposed = nullptr;  // [out, in] and [in, out]
  float* input = nullptr;                          // [rows, in]
  float* slopes = nullptr;                         // [rows, out] where the activation is a SiLU
  float* output = nullptr;                         // [rows, out] of the last layer, if it has an activation
};

struct MlpFisher {
  std::vector<FisherLayer> layers;
  int64_t n = 0, rows = 0;
  int64_t log_std_at = -1, log_std_size = 0;
  std::vector<int64_t> ends;  // of the logits of each of several independent categoricals; Gaussian: none
  float* scale = nullptr;     // Gaussian: 1 / (B sigma^2) [outputs]; categorical: p [rows, outputs]
  Arena memory;               // of all the pointers

  // out = F v + damping v, both [n].
  void product(const float* v, double damping, float* out, Threads threads) const;
  double microseconds() const;
};

}  // namespace fastrl
