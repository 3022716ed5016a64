// The cross-entropy method as argmax over the actions of a network Q(s, a), for a batch of states; fastrl/kernels/cem
// has the equations.
#pragma once

#include "mlp/mlp.h"

namespace fastrl {

// States [begin, end); `q` is prepared.
struct CemArgmax {
  const Mlp* q;
  const float* obs;    // [B, inputs - actions]
  const float* noise;  // [iterations, samples, actions]
  int64_t actions, iterations, samples, elites;
  double std;
  float *action, *value;  // [B, actions], [B]
  void operator()(int64_t begin, int64_t end) const;
};

}  // namespace fastrl
