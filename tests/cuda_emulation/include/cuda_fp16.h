// float16 for the emulation, rounded to nearest even as the GPU's conversions are specified.
#pragma once

#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                          : exponent     ? std::ldexp(1024.0f + fraction, exponent - 25)
                                         : std::ldexp(static_cast<float>(fraction), -24);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

inline __half __float2half_rn(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float a = std::fabs(x);
  if (a != a) return {0x7FFF};
  if (a >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7C00)};
  int exponent;
  std::frexp(a, &exponent);
  if (a < 0x1p-14f) exponent = -13;
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(a, 11 - exponent)));  // 1024 .. 2048, or subnormal
  return {static_cast<uint16_t>(sign | (((exponent + 13) << 10) + units))};
}
