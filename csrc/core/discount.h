// How far a discount reaches.
#pragma once

#include <cmath>
#include <cstdint>

namespace fastrl {

// The smallest k in 1 .. limit for which gamma^k is 0 in the dtype of the arrays, or limit + 1: what lies further on
// counts for nothing, be it NaN. Arrays of less than float32 are worked on as float32.
inline int64_t discount_reach(double gamma, bool is_double, int64_t limit) {
  const auto is_zero = [&](int64_t k) {
    const double x = std::pow(gamma, static_cast<double>(k));
    return is_double ? x == 0 : static_cast<float>(x) == 0;
  };
  if (limit < 1 || !is_zero(limit)) return limit + 1;
  int64_t low = 0, high = limit;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (is_zero(middle) ? high : low) = middle;
  }
  return high;
}

}  // namespace fastrl
