#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "classic_control/physics.h"

namespace fastrl {
namespace {

template <class Family>
class Environments final : public ClassicControl {
 public:
  using ClassicControl::ClassicControl;

  void step(const int64_t* discrete, const float* continuous, Autoreset mode, BitGenerator* const* generators,
            const Results& out) override {
    constexpr int64_t kObs = Family::spaces.obs;
    for (int64_t e = 0; e < c_.envs; ++e) {
      float* obs = out.obs + e * kObs;
      if (c_.done[e]) {  // with next_step only
        begin(e, low_, high_, generators[e]);
        out.reward[e] = 0;
        out.terminated[e] = out.truncated[e] = false;
        observe(e, obs);
        continue;
      }
      const Outcome o = act(e, discrete, continuous);
      const bool truncated = ++c_.elapsed[e] >= c_.max_steps;
      c_.fresh[e] = false;
      c_.done[e] = o.terminated || truncated;
      out.reward[e] = o.reward;
      out.terminated[e] = o.terminated;
      out.truncated[e] = truncated;
      if (c_.done[e] && mode == Autoreset::same_step) {
        observe(e, out.final_obs + e * kObs);
        begin(e, low_, high_, generators[e]);
      }
      observe(e, obs);
    }
  }

  void observe(float* obs) const override {
    for (int64_t e = 0; e < c_.envs; ++e) observe(e, obs + e * Family::spaces.obs);
  }

 private:
  double* state(int64_t e) const { return c_.state + e * Family::spaces.state; }
  void observe(int64_t e, float* obs) const { Family::observe(math_, state(e), c_.fresh[e], obs); }

  Outcome act(int64_t e, const int64_t* discrete, const float* continuous) const {
    if constexpr (Family::spaces.actions) {
      return Family::step(math_, state(e), c_.fresh[e], discrete[e], parameter_);
    } else {
      c_.last_action[e] = continuous[e];
      return Family::step(math_, state(e), c_.fresh[e], continuous[e], parameter_);
    }
  }
};

// f(Family{}) for the family of this name.
template <class F>
auto with_family(const char* name, const F& f) -> decltype(f(CartPole{})) {
  const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("CartPole")) return f(CartPole{});
  if (is("Pendulum")) return f(Pendulum{});
  if (is("Acrobot")) return f(Acrobot{});
  if (is("MountainCar")) return f(MountainCar{});
  if (is("MountainCarContinuous")) return f(MountainCarContinuous{});
  return nullptr;
}

}  // namespace

void ClassicControl::begin(int64_t e, const double* low, const double* high, BitGenerator* generator) {
  double* s = c_.state + e * spaces_.state;
  for (int64_t i = 0; i < spaces_.state; ++i)
    s[i] = i < spaces_.draws ? low[i] + (high[i] - low[i]) * generator->next_double(generator->state) : 0.0;
  c_.elapsed[e] = 0;
  c_.done[e] = false;
  c_.fresh[e] = true;
  c_.last_action[e] = std::numeric_limits<float>::quiet_NaN();
}

void ClassicControl::reset(const uint8_t* which, const double* low, const double* high,
                           BitGenerator* const* generators) {
  for (int64_t e = 0; e < c_.envs; ++e)
    if (!which || which[e]) begin(e, low, high, generators[e]);
}

const ClassicSpaces* classic_spaces(const char* name) {
  return with_family(name, [](auto family) { return &decltype(family)::spaces; });
}

ClassicControl* make_classic_control(const char* name, const ClassicColumns& columns, const NumPyMath& math,
                                     double parameter, const double* low, const double* high) {
  return with_family(name, [&](auto family) -> ClassicControl* {
    using Family = decltype(family);
    return new Environments<Family>(columns, Family::spaces, math, parameter, low, high);
  });
}

}  // namespace fastrl
