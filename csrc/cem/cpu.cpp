#include "cem/cem.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "core/levels.h"
#include "core/simd_math.h"

namespace fastrl {
namespace {

// NaN is the least.
FASTRL_INLINE float rank_of(float q) { return q == q ? q : -std::numeric_limits<float>::infinity(); }

// Whole numbers in the order of the samples' ranks, of equal ones the first before the second: they are all different.
FASTRL_INLINE void order_loop(const float* q, int64_t n, int64_t* keys) {
  for (int64_t i = 0; i < n; ++i) {
    const auto b = static_cast<int32_t>(bits_of(rank_of(q[i]) + 0.0f));  // -0 as 0
    keys[i] = static_cast<int64_t>(b ^ (b >> 31 & 0x7FFFFFFF)) * (int64_t{1} << 32) + (0xFFFFFFFF - i);
  }
}
int64_t sample_of(int64_t key) { return 0xFFFFFFFF - (key & 0xFFFFFFFF); }

// order[k] is the sample with the k-th largest key, n a multiple of kLanes: where each stands is how many are better.
// What a sort compares cannot be predicted, which costs several times as much for as few as this.
constexpr int64_t kFew = 128, kLanes = 8;
FASTRL_INLINE void rank_loop(const int64_t* keys, int64_t n, int64_t* order) {
  for (int64_t i = 0; i < n; i += kLanes) {
    int64_t better[kLanes] = {};
    for (int64_t j = 0; j < n; ++j)
      for (int64_t k = 0; k < kLanes; ++k) better[k] += keys[j] > keys[i + k];
    for (int64_t k = 0; k < kLanes; ++k) order[better[k]] = i + k;
  }
}

// One thread's search; `input` holds a row a sample, the state before the action.
struct Search {
  explicit Search(const CemArgmax& c)
      : cem(c),
        width(c.q->input_stride()),
        columns(c.q->inputs() - c.actions),
        input(static_cast<size_t>(c.samples * width)),
        start(static_cast<size_t>(c.q->start_size())),
        q(static_cast<size_t>(c.samples)),
        scratch(static_cast<size_t>(c.q->block_scratch())),
        keys(static_cast<size_t>((c.samples + kLanes - 1) / kLanes * kLanes), std::numeric_limits<int64_t>::min()),
        order(keys.size()),
        mean(static_cast<size_t>(c.actions)),
        sigma(static_cast<size_t>(c.actions)) {}

  const CemArgmax& cem;
  int64_t width, columns;
  std::vector<float> input, start, q, scratch;
  std::vector<int64_t> keys, order;
  std::vector<double> mean, sigma;

  const float* action_of(int64_t sample) const { return input.data() + sample * width + columns; }

  void draw(const float* noise) {
    for (int64_t i = 0; i < cem.samples; ++i)
      for (int64_t j = 0; j < cem.actions; ++j) {
        const double a = mean[j] + sigma[j] * static_cast<double>(*noise++);
        input[i * width + columns + j] = static_cast<float>(a < -1 ? -1 : a > 1 ? 1 : a);
      }
  }

  void evaluate() {
    for (int64_t i = 0; i < cem.samples; i += Mlp::kBlockRows)
      cem.q->run_block(input.data() + i * width, std::min(Mlp::kBlockRows, cem.samples - i), q.data() + i,
                       scratch.data(), start.empty() ? nullptr : start.data(), 0, columns);
  }

  // The best samples first in `order`; of equal ones the first.
  void rank() {
    at_level<order_loop>(q.data(), cem.samples, keys.data());
    if (cem.samples <= kFew) {
      at_level<rank_loop>(keys.data(), static_cast<int64_t>(keys.size()), order.data());
    } else {
      std::partial_sort(keys.begin(), keys.begin() + cem.elites, keys.end(), std::greater<int64_t>());
      for (int64_t e = 0; e < cem.elites; ++e) order[e] = sample_of(keys[e]);
    }
  }

  void fit() {
    const auto n = static_cast<double>(cem.elites);
    for (int64_t j = 0; j < cem.actions; ++j) {
      double sum = 0, squares = 0;
      for (int64_t e = 0; e < cem.elites; ++e) sum += static_cast<double>(action_of(order[e])[j]);
      mean[j] = sum / n;
      for (int64_t e = 0; e < cem.elites; ++e) {
        const double d = static_cast<double>(action_of(order[e])[j]) - mean[j];
        squares += d * d;
      }
      sigma[j] = std::sqrt(squares / n);
    }
  }

  void run(int64_t b) {
    for (int64_t i = 0; i < cem.samples; ++i) std::copy_n(cem.obs + b * columns, columns, input.data() + i * width);
    // All samples share the state's part of the first layer.
    if (!start.empty()) cem.q->first_start(input.data(), columns, start.data());
    std::fill(mean.begin(), mean.end(), 0.0);
    std::fill(sigma.begin(), sigma.end(), cem.std);
    for (int64_t t = 0; t < cem.iterations; ++t) {
      if (t > 0) fit();
      draw(cem.noise + t * cem.samples * cem.actions);
      evaluate();
      rank();
      const int64_t best = order[0];
      if (t > 0 && !(rank_of(q[best]) > rank_of(cem.value[b]))) continue;
      cem.value[b] = q[best];
      std::copy_n(action_of(best), cem.actions, cem.action + b * cem.actions);
    }
  }
};

}  // namespace

void CemArgmax::operator()(int64_t begin, int64_t end) const {
  Search search(*this);
  for (int64_t b = begin; b < end; ++b) search.run(b);
}

}  // namespace fastrl
