// Gymnasium's classic control environments, to the last bit: each operation in the order and the precision of its
// Python code under NumPy 2, sines and cosines by NumPy's own loops. Compiled without fused multiply-adds.
#pragma once

#include <cstdint>

namespace fastrl {

// The loop of a NumPy function of one number.
struct NumPyLoop {
  using Function = void (*)(char** arguments, const intptr_t* count, const intptr_t* strides, void* data);
  Function function = nullptr;
  void* data = nullptr;

  template <class T>
  T operator()(T x) const {
    T y;
    char* arguments[] = {reinterpret_cast<char*>(&x), reinterpret_cast<char*>(&y)};
    const intptr_t count = 1, strides[] = {sizeof(T), sizeof(T)};
    function(arguments, &count, strides, data);
    return y;
  }
};

// `cos32`, `sin32`: of float32.
struct NumPyMath {
  NumPyLoop sin, cos, sin32, cos32;
};

// NumPy's `bitgen_t`, as numpy/random/bitgen.h has it.
struct BitGenerator {
  void* state;
  uint64_t (*next_uint64)(void*);
  uint32_t (*next_uint32)(void*);
  double (*next_double)(void*);
  uint64_t (*next_raw)(void*);
};

// What a family of environments looks like. A state is reset to `draws` uniform numbers and zeros after them.
struct ClassicSpaces {
  int64_t state, obs, draws;
  int64_t actions;  // 0 .. actions - 1; 0: one float32
};

// The memory of N environments.
struct ClassicColumns {
  double* state;       // [N, state]
  int64_t* elapsed;    // steps of the episode
  uint8_t* done;       // the episode has ended
  uint8_t* fresh;      // the state is that of a reset, which Gymnasium may hold in another precision
  float* last_action;  // as it acted, for drawings; NaN after a reset
  int64_t envs, max_steps;
};

enum class Autoreset { next_step, same_step, disabled };

class ClassicControl {
 public:
  ClassicControl(const ClassicColumns& columns, const ClassicSpaces& spaces, const NumPyMath& math, double parameter,
                 const double* low, const double* high)
      : c_(columns), spaces_(spaces), math_(math), parameter_(parameter), low_(low), high_(high) {}
  virtual ~ClassicControl() = default;

  // Resets those of `which`, or all, with states from low to high.
  void reset(const uint8_t* which, const double* low, const double* high, BitGenerator* const* generators);

  // One step of each. `final_obs` [N, obs] is written for those that end, with same_step.
  struct Results {
    float* obs;
    double* reward;
    uint8_t *terminated, *truncated;
    float* final_obs;
  };
  virtual void step(const int64_t* discrete, const float* continuous, Autoreset mode, BitGenerator* const* generators,
                    const Results& results) = 0;
  virtual void observe(float* obs) const = 0;

 protected:
  void begin(int64_t e, const double* low, const double* high, BitGenerator* generator);

  const ClassicColumns c_;
  const ClassicSpaces spaces_;
  const NumPyMath math_;
  const double parameter_;
  const double *const low_, *const high_;
};

// "CartPole", "Pendulum", "Acrobot", "MountainCar" or "MountainCarContinuous"; null for another name.
const ClassicSpaces* classic_spaces(const char* name);

// `parameter`: CartPole's sutton_barto_reward, Pendulum's g, the mountain cars' goal_velocity.
ClassicControl* make_classic_control(const char* name, const ClassicColumns& columns, const NumPyMath& math,
                                     double parameter, const double* low, const double* high);

}  // namespace fastrl
