// The equations of the five environments. A step returns (reward, terminated).
#pragma once

#include <cmath>

#include "classic_control/classic_control.h"

namespace fastrl {

struct Outcome {
  double reward;
  bool terminated;
};

constexpr double kPi = 3.141592653589793;

// x ** 2 of NumPy's and Python's numbers is the C library's pow, which is not always x * x.
inline double squared(double x) {
  static double (*const volatile power)(double, double) = std::pow;
  return power(x, 2);
}
inline float squared(float x) {
  static float (*const volatile power)(float, float) = std::pow;
  return power(x, 2);
}

// min(max(x, low), high) as NumPy's clip and Python's min and max have it for what is not NaN.
template <class T>
T clip(T x, T low, T high) {
  return x < low ? low : x > high ? high : x;
}

struct CartPole {
  static constexpr ClassicSpaces spaces{4, 4, 4, 2};

  static void observe(const NumPyMath&, const double* s, bool, float* obs) {
    for (int i = 0; i < 4; ++i) obs[i] = static_cast<float>(s[i]);
  }

  static Outcome step(const NumPyMath& math, double* s, bool, int64_t action, double sutton_barto_reward) {
    constexpr double gravity = 9.8, masspole = 0.1, total_mass = masspole + 1.0, length = 0.5, tau = 0.02;
    constexpr double polemass_length = masspole * length, max_x = 2.4, max_theta = 12 * 2 * kPi / 360;
    const double force = action == 1 ? 10.0 : -10.0;
    const double cos = math.cos(s[2]), sin = math.sin(s[2]);
    const double temp = (force + polemass_length * (s[3] * s[3]) * sin) / total_mass;
    const double thetaacc = (gravity * sin - cos * temp) / (length * (4.0 / 3.0 - masspole * (cos * cos) / total_mass));
    const double xacc = temp - polemass_length * thetaacc * cos / total_mass;
    s[0] = s[0] + tau * s[1];
    s[1] = s[1] + tau * xacc;
    s[2] = s[2] + tau * s[3];
    s[3] = s[3] + tau * thetaacc;
    const bool terminated = s[0] < -max_x || s[0] > max_x || s[2] < -max_theta || s[2] > max_theta;
    return {sutton_barto_reward != 0 ? (terminated ? -1.0 : 0.0) : 1.0, terminated};
  }
};

struct Pendulum {
  static constexpr ClassicSpaces spaces{2, 3, 2, 0};

  static void observe(const NumPyMath& math, const double* s, bool, float* obs) {
    obs[0] = static_cast<float>(math.cos(s[0]));
    obs[1] = static_cast<float>(math.sin(s[0]));
    obs[2] = static_cast<float>(s[1]);
  }

  static Outcome step(const NumPyMath& math, double* s, bool, float action, double g) {
    constexpr double dt = 0.05, max_speed = 8;
    const float u = clip(action, -2.0F, 2.0F);
    const double th = s[0], thdot = s[1];
    const double costs = squared(angle_normalize(th)) + 0.1 * squared(thdot) + 0.001F * squared(u);
    const double newthdot = thdot + (3 * g / 2 * math.sin(th) + 3.0F * u) * dt;
    s[1] = clip(newthdot, -max_speed, max_speed);
    s[0] = th + s[1] * dt;
    return {-costs, false};
  }

 private:
  static double angle_normalize(double x) {
    double rest = std::fmod(x + kPi, 2 * kPi);
    if (rest < 0) rest += 2 * kPi;
    return (rest == 0 ? 0.0 : rest) - kPi;
  }
};

struct Acrobot {
  static constexpr ClassicSpaces spaces{4, 6, 4, 3};

  static void observe(const NumPyMath& math, const double* s, bool fresh, float* obs) {
    for (int i = 0; i < 2; ++i) {
      if (fresh) {
        obs[2 * i] = math.cos32(static_cast<float>(s[i]));
        obs[2 * i + 1] = math.sin32(static_cast<float>(s[i]));
      } else {
        obs[2 * i] = static_cast<float>(math.cos(s[i]));
        obs[2 * i + 1] = static_cast<float>(math.sin(s[i]));
      }
      obs[4 + i] = static_cast<float>(s[2 + i]);
    }
  }

  static Outcome step(const NumPyMath& math, double* s, bool fresh, int64_t action, double) {
    constexpr double dt = 0.2, dt2 = dt / 2.0;
    const double torque = static_cast<double>(action - 1);
    if (fresh)
      for (int i = 0; i < 4; ++i) s[i] = static_cast<float>(s[i]);
    double k1[4], k2[4], k3[4], k4[4], y[4];
    slope(math, s, torque, k1);
    for (int i = 0; i < 4; ++i) y[i] = s[i] + dt2 * k1[i];
    slope(math, y, torque, k2);
    for (int i = 0; i < 4; ++i) y[i] = s[i] + dt2 * k2[i];
    slope(math, y, torque, k3);
    for (int i = 0; i < 4; ++i) y[i] = s[i] + dt * k3[i];
    slope(math, y, torque, k4);
    for (int i = 0; i < 4; ++i) s[i] = s[i] + dt / 6.0 * (k1[i] + 2 * k2[i] + 2 * k3[i] + k4[i]);
    s[0] = wrap(s[0]);
    s[1] = wrap(s[1]);
    s[2] = clip(s[2], -4 * kPi, 4 * kPi);
    s[3] = clip(s[3], -9 * kPi, 9 * kPi);
    const bool terminated = -math.cos(s[0]) - math.cos(s[1] + s[0]) > 1.0;
    return {terminated ? 0.0 : -1.0, terminated};
  }

 private:
  // The derivatives of the state, of Sutton and Barto's book. Masses, lengths and moments of inertia are 1, and the
  // centres of mass in the middle.
  static void slope(const NumPyMath& math, const double* s, double torque, double* out) {
    constexpr double m1 = 1, m2 = 1, l1 = 1, lc1 = 0.5, lc2 = 0.5, i1 = 1, i2 = 1, g = 9.8;
    const double theta1 = s[0], theta2 = s[1], dtheta1 = s[2], dtheta2 = s[3];
    const double cos2 = math.cos(theta2), sin2 = math.sin(theta2);
    const double d1 = m1 * (lc1 * lc1) + m2 * (l1 * l1 + lc2 * lc2 + 2 * l1 * lc2 * cos2) + i1 + i2;
    const double d2 = m2 * (lc2 * lc2 + l1 * lc2 * cos2) + i2;
    const double phi2 = m2 * lc2 * g * math.cos(theta1 + theta2 - kPi / 2.0);
    const double phi1 = -m2 * l1 * lc2 * squared(dtheta2) * sin2 - 2 * m2 * l1 * lc2 * dtheta2 * dtheta1 * sin2 +
                        (m1 * lc1 + m2 * l1) * g * math.cos(theta1 - kPi / 2) + phi2;
    const double ddtheta2 = (torque + d2 / d1 * phi1 - m2 * l1 * lc2 * squared(dtheta1) * sin2 - phi2) /
                            (m2 * (lc2 * lc2) + i2 - squared(d2) / d1);
    out[0] = dtheta1;
    out[1] = dtheta2;
    out[2] = -(d2 * ddtheta2 + phi1) / d1;
    out[3] = ddtheta2;
  }

  static double wrap(double x) {
    constexpr double turn = kPi - -kPi;
    if (std::abs(x) > 1e6) x = std::fmod(x, turn);  // Gymnasium goes on subtracting, for ever from 1e17 on
    while (x > kPi) x = x - turn;
    while (x < -kPi) x = x + turn;
    return x;
  }
};

struct MountainCar {
  static constexpr ClassicSpaces spaces{2, 2, 1, 3};

  static void observe(const NumPyMath&, const double* s, bool, float* obs) {
    obs[0] = static_cast<float>(s[0]);
    obs[1] = static_cast<float>(s[1]);
  }

  static Outcome step(const NumPyMath&, double* s, bool, int64_t action, double goal_velocity) {
    double position = s[0], velocity = s[1];
    velocity += static_cast<double>(action - 1) * 0.001 + std::cos(3 * position) * -0.0025;
    velocity = clip(velocity, -0.07, 0.07);
    position += velocity;
    position = clip(position, -1.2, 0.6);
    if (position == -1.2 && velocity < 0) velocity = 0;
    s[0] = position, s[1] = velocity;
    return {-1.0, position >= 0.5 && velocity >= goal_velocity};
  }
};

struct MountainCarContinuous {
  static constexpr ClassicSpaces spaces{2, 2, 1, 0};

  static void observe(const NumPyMath& math, const double* s, bool fresh, float* obs) {
    MountainCar::observe(math, s, fresh, obs);
  }

  static Outcome step(const NumPyMath&, double* s, bool fresh, float action, double goal_velocity) {
    const bool goal = fresh ? move<double>(s, action, goal_velocity) : move<float>(s, action, goal_velocity);
    const double reward = goal ? 100.0 : 0.0;
    return {reward - squared(static_cast<double>(action)) * 0.1, goal};
  }

 private:
  // In T, the precision that Gymnasium's state has then. Afterwards it is float32.
  template <class T>
  static bool move(double* s, float action, double goal_velocity) {
    constexpr T max_speed = static_cast<T>(0.07), min_position = static_cast<T>(-1.2),
                max_position = static_cast<T>(0.6);
    T position = static_cast<T>(s[0]), velocity = static_cast<T>(s[1]);
    const double slope = 0.0025 * std::cos(static_cast<double>(3 * position));
    if (action < -1 || action > 1)  // a force at its bound is Python's
      velocity += static_cast<T>((action > 1 ? 1.0 : -1.0) * 0.0015 - slope);
    else
      velocity += static_cast<T>(action * 0.0015F - static_cast<float>(slope));
    velocity = clip(velocity, -max_speed, max_speed);
    position += velocity;
    position = clip(position, min_position, max_position);
    if (position == min_position && velocity < 0) velocity = 0;
    s[0] = static_cast<float>(position), s[1] = static_cast<float>(velocity);
    return position >= static_cast<T>(0.45) && velocity >= static_cast<T>(goal_velocity);
  }
};

}  // namespace fastrl
