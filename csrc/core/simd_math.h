// Elementary functions that vectorise inside a plain loop at every instruction level: no branch, no table, no call.
// Largest error over 8e6 arguments against long double: log 1.3 ulp, exp 1.0 ulp (float32: 1.1), cos 1.8e-16; log 1 and
// e^0 exact. NaN gives NaN.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "core/common.h"

namespace fastrl {

FASTRL_HD FASTRL_INLINE uint64_t bits_of(double x) {
  uint64_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}

FASTRL_HD FASTRL_INLINE double double_of(uint64_t b) {
  double x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}

// Natural logarithm of a positive finite x, subnormals included.
// x = 2^k m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1), by its Taylor series.
FASTRL_HD FASTRL_INLINE double log_positive(double x) {
  const bool tiny = x < 0x1p-1022;
  const uint64_t b = bits_of(tiny ? x * 0x1p54 : x) + (0x3FF0000000000000u - 0x3FE6A09E667F3BCDu);
  // Unsigned to double by the exponent trick: SSE2 and AVX2 have no 64-bit conversion.
  const double k = double_of((b >> 52) | 0x4330000000000000u) - (0x1p52 + 1023.0) - (tiny ? 54.0 : 0.0);
  const double m = double_of((b & 0x000FFFFFFFFFFFFFu) + 0x3FE6A09E667F3BCDu);
  const double f = m - 1.0, s = f / (2.0 + f), z = s * s;
  double r = 1.0 / 23;
  r = r * z + 1.0 / 21;
  r = r * z + 1.0 / 19;
  r = r * z + 1.0 / 17;
  r = r * z + 1.0 / 15;
  r = r * z + 1.0 / 13;
  r = r * z + 1.0 / 11;
  r = r * z + 1.0 / 9;
  r = r * z + 1.0 / 7;
  r = r * z + 1.0 / 5;
  r = r * z + 1.0 / 3;
  // log m = 2 s + 2 s z r, and 2 s = f - s f exactly up to one rounding.
  const double log_m = f - s * (f - 2.0 * z * r);
  return k * 0x1.62e42fee00000p-1 + (k * 0x1.a39ef35793c76p-33 + log_m);
}

// Variables: device code may not call the functions of numeric_limits.
constexpr double kInf = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr float kFloatInf = std::numeric_limits<float>::infinity();

// The bits of a float64, or of several side by side (lanes.h).
template <class V>
struct Bits {
  using type = uint64_t;
};
template <class V>
FASTRL_HD FASTRL_INLINE V power_of_2(V shifted) {  // 2^k for what exp_bounded calls `shifted`
  typename Bits<V>::type b;
  std::memcpy(&b, &shifted, sizeof b);
  b = (b << 52) + 0x3FF0000000000000u;
  V power;
  std::memcpy(&power, &b, sizeof b);
  return power;
}

// e^x; 0 below the smallest normal number, inf above e^709. V: double, or several of them.
template <class V>
FASTRL_HD FASTRL_INLINE V exp_bounded_of(V x) {
  const V low = V{} + -708.3964185322641 /* log 2^-1022 */, high = V{} + 709.0;
  const V above = x < low ? low : x, y = above > high ? high : above;
  const V shifted = y * 0x1.71547652b82fep+0 + 0x1.8p52;  // the low bits hold round(y / log 2)
  const V k = shifted - 0x1.8p52;
  const V r = (y - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;
  V p = V{} + 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = (p * r) * r + r;
  const V e = (p + 1.0) * power_of_2(shifted);
  const V bounded = x > high ? V{} + kInf : e;
  return x < low ? V{} : bounded;
}
FASTRL_HD FASTRL_INLINE double exp_bounded(double x) { return exp_bounded_of(x); }

FASTRL_HD FASTRL_INLINE uint32_t bits_of(float x) {
  uint32_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}

FASTRL_HD FASTRL_INLINE float float_of(uint32_t b) {
  float x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}

// e^x for x in [ExpFloor, 0]; 0 at and a little above the floor, for which the scale 2^k comes out as 0.
template <class T>
struct ExpFloor;
template <>
struct ExpFloor<float> {
  static constexpr float value = -88.0f;
};
template <>
struct ExpFloor<double> {
  static constexpr double value = -709.0;
};

FASTRL_HD FASTRL_INLINE float exp_negative(float x) {
  const float shifted = x * 0x1.715476p+0f + 0x1.8p23f;  // the low bits hold round(x / log 2)
  const float k = shifted - 0x1.8p23f;
  const float r = (x - k * 0x1.62ep-1f) - k * 0x1.0bfbe8p-15f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = (p * r) * r + r;
  return (p + 1.0f) * float_of((bits_of(shifted) << 23) + 0x3F800000u);
}

FASTRL_HD FASTRL_INLINE double exp_negative(double x) {
  const double shifted = x * 0x1.71547652b82fep+0 + 0x1.8p52;
  const double k = shifted - 0x1.8p52;
  const double r = (x - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = (p * r) * r + r;
  return (p + 1.0) * double_of((bits_of(shifted) << 52) + 0x3FF0000000000000u);
}

FASTRL_HD FASTRL_INLINE float root(float x) { return sqrtf(x); }
FASTRL_HD FASTRL_INLINE double root(double x) { return sqrt(x); }

FASTRL_HD FASTRL_INLINE float magnitude(float x) { return fabsf(x); }
FASTRL_HD FASTRL_INLINE double magnitude(double x) { return fabs(x); }
FASTRL_HD FASTRL_INLINE float with_sign(float x, float sign) { return copysignf(x, sign); }
FASTRL_HD FASTRL_INLINE double with_sign(double x, double sign) { return copysign(x, sign); }

// e^x = (1 + p) scale in float64 for |x| <= 700, 2.3e-10 from it: for what is then used as a float32. A minimax
// polynomial.
template <class V>
struct ExpRough {
  V p, scale;
};
template <class V>
FASTRL_HD FASTRL_INLINE ExpRough<V> exp_rough_of(V x) {
  const V shifted = x * 0x1.71547652b82fep+0 + 0x1.8p52;
  const V r = x - (shifted - 0x1.8p52) * 0x1.62e42fefa39efp-1;
  // Not by Horner: of a chain half as long more fit into what a core looks ahead.
  const V r2 = r * r;
  const V low = 0.16666666756474335 * r + 0.50000000134697841,
          middle = 0.0083332860022666012 * r + 0.041666464898970161;
  const V high = 0.00019907587726629705 * r + 0.0013933652192531016;
  return {((high * r2 + middle) * r2 + low) * r2 + r, power_of_2(shifted)};
}
FASTRL_HD FASTRL_INLINE double exp_rough(double x) {
  const ExpRough<double> e = exp_rough_of(x);
  return e.p * e.scale + e.scale;
}
// Of any x: the scale comes out as 0 below -709 and as inf above 710, which are `floor` and `ceiling`; variables, as in
// exp_pair. NaN stays one.
constexpr double kExpFloor = -709.0, kExpCeiling = 710.0;
template <class V>
FASTRL_HD FASTRL_INLINE V exp_rough_bounded(V x, double floor, double ceiling) {
  const V low = V{} + floor, high = V{} + ceiling, above = x < low ? low : x;
  const ExpRough<V> e = exp_rough_of<V>(above > high ? high : above);
  return (e.p + 1.0) * e.scale;
}

// log(1 + y) for y >= 0 and finite.
FASTRL_HD FASTRL_INLINE double log1p_positive(double y) {
  const double w = 1.0 + y;
  return log_positive(w) + (y - (w - 1.0)) / w;
}

// e^x and e^x - 1, each to its own precision, for x <= 0. `floor` is ExpFloor's; where it is a variable, compilers take
// the larger of two numbers instead of working on both sides of a branch.
template <class T>
struct ExpPair {
  T e, minus_1;
};

FASTRL_HD FASTRL_INLINE ExpPair<float> exp_pair(float x, float floor) {
  const float y = x < floor ? floor : x;
  const float shifted = y * 0x1.715476p+0f + 0x1.8p23f, k = shifted - 0x1.8p23f;
  const float r = (y - k * 0x1.62ep-1f) - k * 0x1.0bfbe8p-15f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = (p * r) * r + r;
  const float scale = float_of((bits_of(shifted) << 23) + 0x3F800000u);
  return {p * scale + scale, p * scale + (scale - 1.0f)};
}

FASTRL_HD FASTRL_INLINE ExpPair<double> exp_pair(double x, double floor) {
  const double y = x < floor ? floor : x;
  const double shifted = y * 0x1.71547652b82fep+0 + 0x1.8p52, k = shifted - 0x1.8p52;
  const double r = (y - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = (p * r) * r + r;
  const double scale = double_of((bits_of(shifted) << 52) + 0x3FF0000000000000u);
  return {p * scale + scale, p * scale + (scale - 1.0)};
}

// log(1 + w) for w in [0, 1]. Float32: a minimax polynomial, at most 1.4e-7 from it.
FASTRL_HD FASTRL_INLINE float log1p_unit(float w) {
  float p = 0.005384056802f;
  p = p * w - 0.03011094444f;
  p = p * w + 0.07921070655f;
  p = p * w - 0.1374661934f;
  p = p * w + 0.191451151f;
  p = p * w - 0.2485294543f;
  p = p * w + 0.3332034351f;
  p = p * w - 0.4999955259f;
  p = p * w + 1.0f;
  return p * w;
}

// 2 atanh(s), s = w / (2 + w) in [0, 1/3].
FASTRL_HD FASTRL_INLINE double log1p_unit(double w) {
  const double s = w / (2.0 + w), z = s * s;
  double r = 2.0 / 31;
  r = r * z + 2.0 / 29;
  r = r * z + 2.0 / 27;
  r = r * z + 2.0 / 25;
  r = r * z + 2.0 / 23;
  r = r * z + 2.0 / 21;
  r = r * z + 2.0 / 19;
  r = r * z + 2.0 / 17;
  r = r * z + 2.0 / 15;
  r = r * z + 2.0 / 13;
  r = r * z + 2.0 / 11;
  r = r * z + 2.0 / 9;
  r = r * z + 2.0 / 7;
  r = r * z + 2.0 / 5;
  r = r * z + 2.0 / 3;
  return (r * z) * s + 2.0 * s;
}

// log(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)); the polynomial is that of Cephes' logf.
FASTRL_HD FASTRL_INLINE float log1p_near_0(float f) {
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float z = f * f;
  return f - (0.5f * z - p * (f * z));
}

// Natural logarithm of a normal positive finite x.
FASTRL_HD FASTRL_INLINE float log_normal(float x) {
  const int32_t b = static_cast<int32_t>(bits_of(x)) - 0x3F3504F3;
  const float k = static_cast<float>(b >> 23), m = float_of(static_cast<uint32_t>(b & 0x007FFFFF) + 0x3F3504F3u);
  return k * 0x1.62ep-1f + (k * 0x1.0bfbe8p-15f + log1p_near_0(m - 1.0f));
}

// -log u of u = (bits | 1) 2^-32, in (0, 1): through u where it is small and through 1 - u = (~bits | 1) 2^-32 where it
// is near 1, so that the relative error stays that of the type.
FASTRL_HD FASTRL_INLINE float minus_log_uniform(uint32_t bits, float) {
  // In units of 2^-31: as signed numbers, which every instruction set converts.
  const auto half = static_cast<int32_t>(bits >> 1);
  const float u = static_cast<float>(half) + 0.5f, rest = static_cast<float>(0x7FFFFFFF - half) + 0.5f;
  const bool near_1 = half >= 0x5A82799A;  // u >= sqrt(1/2)
  const int32_t b = static_cast<int32_t>(bits_of(u)) - 0x3F3504F3;
  const float k = near_1 ? 0.0f : static_cast<float>((b >> 23) - 31);
  const float m = float_of(static_cast<uint32_t>(b & 0x007FFFFF) + 0x3F3504F3u);
  const float f = near_1 ? rest * -0x1p-31f : m - 1.0f;
  const float log_m = log1p_near_0(f);
  return -(k * 0x1.62ep-1f + (k * 0x1.0bfbe8p-15f + log_m));
}

FASTRL_HD FASTRL_INLINE double minus_log_uniform(uint32_t bits, double) {
  // By the exponent trick: SSE2 and AVX2 have no conversion from unsigned.
  return -log_positive((double_of(uint64_t{bits | 1u} | 0x4330000000000000u) - 0x1p52) * 0x1p-32);
}

// cos and sin of 2 pi v, v = bits 2^-32: of the nearest quarter turn and what is left, in [-1/8, 1/8) of a turn.
template <class T>
struct CosSin {
  T cos, sin;
};

FASTRL_HD FASTRL_INLINE CosSin<float> cos_sin_turns(uint32_t bits, float) {
  const auto rest = static_cast<int32_t>(bits << 2) >> 2;
  const uint32_t quarter = (bits - static_cast<uint32_t>(rest)) >> 30;
  const float x = static_cast<float>(rest) * 0x1.921fb6p-30f, z = x * x;
  float s = -1.9515295891e-4f;  // the polynomials are those of Cephes' sinf
  s = s * z + 8.3321608736e-3f;
  s = s * z - 1.6666654611e-1f;
  s = (s * z) * x + x;
  float c = 2.443315711809948e-5f;
  c = c * z - 1.388731625493765e-3f;
  c = c * z + 4.166664568298827e-2f;
  c = (c * z) * z - 0.5f * z + 1.0f;
  const bool odd = quarter & 1;
  return {float_of(bits_of(odd ? s : c) ^ (((quarter + 1) & 2) << 30)),
          float_of(bits_of(odd ? c : s) ^ ((quarter & 2) << 30))};
}

FASTRL_HD FASTRL_INLINE CosSin<double> cos_sin_turns(uint32_t bits, double) {
  const auto rest = static_cast<int32_t>(bits << 2) >> 2;
  const uint64_t quarter = (bits - static_cast<uint32_t>(rest)) >> 30;
  const double x = static_cast<double>(rest) * 0x1.921fb54442d18p-30, z = x * x;
  double s = -1.0 / 1307674368000;
  s = s * z + 1.0 / 6227020800;
  s = s * z - 1.0 / 39916800;
  s = s * z + 1.0 / 362880;
  s = s * z - 1.0 / 5040;
  s = s * z + 1.0 / 120;
  s = s * z - 1.0 / 6;
  s = (s * z) * x + x;
  double c = 1.0 / 20922789888000;
  c = c * z - 1.0 / 87178291200;
  c = c * z + 1.0 / 479001600;
  c = c * z - 1.0 / 3628800;
  c = c * z + 1.0 / 40320;
  c = c * z - 1.0 / 720;
  c = c * z + 1.0 / 24;
  c = c * z - 0.5;
  c = c * z + 1.0;
  const bool odd = quarter & 1;
  return {double_of(bits_of(odd ? s : c) ^ (((quarter + 1) & 2) << 62)),
          double_of(bits_of(odd ? c : s) ^ ((quarter & 2) << 62))};
}

}  // namespace fastrl
