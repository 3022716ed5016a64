#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "binding/bind.h"
#include "classic_control/classic_control.h"

namespace fastrl {
namespace {

// The beginning of NumPy's PyUFuncObject, the same in NumPy 1 and 2.
struct UFunc {
  PyObject_HEAD int nin, nout, nargs, identity;
  NumPyLoop::Function* functions;
  void** data;
  int ntypes, reserved;
  const char* name;
  const char* types;
};

constexpr char kFloat = 11, kDouble = 12;  // NPY_FLOAT, NPY_DOUBLE

NumPyLoop loop_of(const py::object& function, char type) {
  if (!py::isinstance(function, import_module("numpy").attr("ufunc")))
    raise_type("ClassicControl: sin and cos must be NumPy's, got " + type_name(function.ptr()));
  const auto* u = reinterpret_cast<const UFunc*>(function.ptr());
  if (u->nin == 1 && u->nout == 1)
    for (int i = 0; i < u->ntypes; ++i)
      if (u->types[2 * i] == type && u->types[2 * i + 1] == type)
        return {u->functions[i], u->data ? u->data[i] : nullptr};
  throw std::runtime_error("ClassicControl: this NumPy's sin and cos have no loops that fastrl knows");
}

class ClassicControlCore {
 public:
  ClassicControlCore(std::string name, py::object state, py::object elapsed, py::object done, py::object fresh,
                     py::object last_action, int64_t max_steps, const std::string& mode, double parameter,
                     py::object low, py::object high, py::object sin, py::object cos)
      : name_(std::move(name)) {
    const ClassicSpaces* spaces = classic_spaces(name_.c_str());
    if (!spaces) raise_value("ClassicControl: unknown name " + name_);
    spaces_ = *spaces;
    mode_ = mode == "NextStep" ? Autoreset::next_step : mode == "SameStep" ? Autoreset::same_step : Autoreset::disabled;
    low_ = bounds(low), high_ = bounds(high);
    columns_.envs = -1;
    columns_.envs = column<uint8_t>(done, DType::boolean, 1, &columns_.done);
    column(state, DType::f64, spaces_.state, &columns_.state);
    column(elapsed, DType::i64, 1, &columns_.elapsed);
    column(fresh, DType::boolean, 1, &columns_.fresh);
    column(last_action, DType::f32, 1, &columns_.last_action);
    columns_.max_steps = max_steps;
    const NumPyMath math{loop_of(sin, kDouble), loop_of(cos, kDouble), loop_of(sin, kFloat), loop_of(cos, kFloat)};
    kept_.insert(kept_.end(), {sin, cos});
    environments_.reset(make_classic_control(name_.c_str(), columns_, math, parameter, low_.data(), high_.data()));
    (spaces_.actions ? discrete_.resize(columns_.envs) : continuous_.resize(columns_.envs));
    final_obs_.resize(mode_ == Autoreset::same_step ? columns_.envs * spaces_.obs : 0);
  }

  // NumPy's bit generators, one an environment.
  void set_generators(const py::list& bit_generators) {
    if (static_cast<int64_t>(bit_generators.size()) != columns_.envs)
      raise_value("ClassicControl: one generator an environment");
    std::vector<BitGenerator*> found;
    for (const py::handle b : bit_generators) {
      void* pointer = PyCapsule_GetPointer(py::object(b.attr("capsule")).ptr(), "BitGenerator");
      if (!pointer) throw py::error_already_set();
      found.push_back(static_cast<BitGenerator*>(pointer));
    }
    generators_ = std::move(found);
    bit_generators_ = py::list(bit_generators.attr("copy")());
  }

  py::object reset(const py::object& which, const py::object& low, const py::object& high) {
    check_generators();
    const std::vector<double> from = bounds(low), to = bounds(high);
    const uint8_t* mask = nullptr;
    Array a;
    if (!which.is_none()) {
      a = load_cpu(which.ptr(), "ClassicControl: which", {DType::boolean});
      if (a.ndim != 1 || a.shape[0] != columns_.envs || !a.is_contiguous())
        raise_value("ClassicControl: which must have shape [N]");
      mask = reinterpret_cast<const uint8_t*>(a.data);
    }
    environments_->reset(mask, from.data(), to.data(), generators_.data());
    return observe();
  }

  py::object observe() const {
    Result obs = new_obs();
    environments_->observe(data_of<float>(obs));
    return std::move(obs.object);
  }

  // obs, reward, terminated, truncated; and with SameStep the observations [N, obs] at the end of episodes, if any
  // ends.
  py::tuple step(const py::object& actions) {
    check_generators();
    load_actions(actions);
    const int64_t n = columns_.envs;
    Result obs = new_obs(), reward = allocate_numpy(DType::f64, &n, 1);
    Result terminated = allocate_numpy(DType::boolean, &n, 1), truncated = allocate_numpy(DType::boolean, &n, 1);
    const ClassicControl::Results results{data_of<float>(obs), data_of<double>(reward), data_of<uint8_t>(terminated),
                                          data_of<uint8_t>(truncated), final_obs_.data()};
    environments_->step(discrete_.data(), continuous_.data(), mode_, generators_.data(), results);
    py::object final_obs = py::none();
    if (mode_ == Autoreset::same_step && any_ends(results)) {
      Result copy = new_obs();
      std::memcpy(copy.data, final_obs_.data(), final_obs_.size() * sizeof(float));
      final_obs = std::move(copy.object);
    }
    return py::make_tuple(std::move(obs.object), std::move(reward.object), std::move(terminated.object),
                          std::move(truncated.object), std::move(final_obs));
  }

 private:
  template <class T>
  int64_t column(const py::object& array, DType dtype, int64_t width, T** data) {
    const Array a = load_cpu(array.ptr(), "ClassicControl: column", {dtype});
    const int64_t n = a.ndim ? a.shape[0] : 0;
    if (a.size() != n * width || n < 1 || (columns_.envs >= 0 && n != columns_.envs) || !a.is_contiguous() ||
        !a.writable)
      raise_value("ClassicControl: a column has a wrong shape");
    kept_.push_back(array);
    *data = reinterpret_cast<T*>(a.data);
    return n;
  }

  std::vector<double> bounds(const py::object& array) const {
    const Array a = load_cpu(array.ptr(), "ClassicControl: bounds", {DType::f64});
    if (a.ndim != 1 || a.shape[0] != spaces_.draws || !a.is_contiguous())
      raise_value("ClassicControl: bounds have a wrong shape");
    const auto* x = reinterpret_cast<const double*>(a.data);
    return {x, x + spaces_.draws};
  }

  void check_generators() const {
    if (generators_.empty()) throw std::runtime_error("reset() must be called before step()");
  }

  Result new_obs() const {
    const int64_t shape[] = {columns_.envs, spaces_.obs};
    return allocate_numpy(DType::f32, shape, 2);
  }

  bool any_ends(const ClassicControl::Results& r) const {
    for (int64_t e = 0; e < columns_.envs; ++e)
      if (r.terminated[e] || r.truncated[e]) return true;
    return false;
  }

  // Copied, and checked in the copy: another thread may write to the caller's array.
  void load_actions(const py::object& actions) {
    const std::string where = name_ + ": actions";
    const int64_t n = columns_.envs;
    if (spaces_.actions) {
      const Array a = load_cpu(actions.ptr(), where.c_str(), {DType::i64, DType::i32});
      if (a.ndim != 1 || a.shape[0] != n) raise_shape_of(a, where, "(" + std::to_string(n) + ",)");
      const Contiguous<int64_t> all(a);
      std::memcpy(discrete_.data(), all.data(), n * sizeof(int64_t));
    } else {
      const Array a = load_cpu(actions.ptr(), where.c_str(), {DType::f32});
      if (a.ndim != 2 || a.shape[0] != n || a.shape[1] != 1) raise_shape_of(a, where, "(" + std::to_string(n) + ", 1)");
      for (int64_t e = 0; e < n; ++e) std::memcpy(&continuous_[e], a.data + e * a.strides[0], sizeof(float));
    }
    for (int64_t e = 0; e < n; ++e) {
      if (columns_.done[e]) {
        if (mode_ == Autoreset::next_step) continue;  // its action is not used
        throw std::runtime_error("the episode of environment " + std::to_string(e) +
                                 " has ended: reset it first, by reset(options={\"reset_mask\": mask})");
      }
      if (spaces_.actions && !(discrete_[e] >= 0 && discrete_[e] < spaces_.actions))
        raise_value(where + " must be in [0, " + std::to_string(spaces_.actions) + "), got " +
                    std::to_string(discrete_[e]) + " for environment " + std::to_string(e));
      if (!spaces_.actions && !std::isfinite(continuous_[e]))
        raise_value(where + " must be finite, got " + repr(continuous_[e]) + " for environment " + std::to_string(e));
    }
  }

  [[noreturn]] static void raise_shape_of(const Array& a, const std::string& where, const std::string& wanted) {
    raise_value(where + " must have shape " + wanted + ", got " + shape_text(a.shape, a.ndim));
  }

  const std::string name_;
  ClassicSpaces spaces_{};
  ClassicColumns columns_{};
  Autoreset mode_;
  std::vector<double> low_, high_;
  std::vector<py::object> kept_;  // whose memory is used
  py::list bit_generators_;       // whose memory `generators_` are
  std::vector<BitGenerator*> generators_;
  std::vector<int64_t> discrete_;
  std::vector<float> continuous_, final_obs_;
  std::unique_ptr<ClassicControl> environments_;
};

void bind(py::handle m) {
  using C = ClassicControlCore;
  using O = py::object;
  Class<C, std::string, O, O, O, O, O, int64_t, std::string, double, O, O, O, O>(
      m,
      "ClassicControl(name, state, elapsed, done, fresh, last_action, max_steps, mode, parameter, low, high, sin, cos)")
      .method<&C::set_generators>("set_generators(bit_generators)")
      .method<&C::reset>("reset(which, low, high)")
      .method<&C::observe>("observe()")
      .method<&C::step>("step(actions)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
