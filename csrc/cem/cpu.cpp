#include "cem/cem.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace fastrl {
namespace {

// NaN is the least.
float rank_of(float q) { return q == q ? q : -std::numeric_limits<float>::infinity(); }

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
        order(static_cast<size_t>(c.samples)),
        mean(static_cast<size_t>(c.actions)),
        sigma(static_cast<size_t>(c.actions)) {}

  const CemArgmax& cem;
  int64_t width, columns;
  std::vector<float> input, start, q, scratch;
  std::vector<int64_t> order;
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
    std::iota(order.begin(), order.end(), int64_t{0});
    std::partial_sort(order.begin(), order.begin() + cem.elites, order.end(), [this](int64_t a, int64_t b) {
      const float x = rank_of(q[a]), y = rank_of(q[b]);
      return x > y || (x == y && a < b);
    });
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
