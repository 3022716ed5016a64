// MLP: checks what comes from Python, lets go of the GIL, calls the networks. fastrl/kernels/mlp makes them.
#include "binding/bind.h"
#include "mlp/flat_adam.h"
#include "mlp/mlp.h"

#include <cmath>
#include <limits>
#include <memory>

namespace fastrl {

namespace {

// A float32 vector of n numbers in one piece, to read or to write.
float* load_flat(const Array& a, const std::string& where, int64_t n, bool write) {
  if (a.ndim != 1 || a.shape[0] != n)
    raise_value(where + " must have shape (" + std::to_string(n) + ",), got " + shape_text(a.shape, a.ndim));
  if (!a.is_contiguous() || !a.aligned) raise_value(where + " must be contiguous");
  if (write && !a.writable) raise_value(where + " must be writable");
  return reinterpret_cast<float*>(a.data);
}

Array load_float(py::handle x, const std::string& where) { return load_cpu(x.ptr(), where.c_str(), {DType::f32}); }

// What the networks see: one array [B, inputs], or several whose columns are taken together.
struct Inputs {
  std::vector<Array> arrays;
  std::vector<MlpPart> parts;
  int64_t rows = 0;

  Inputs(py::handle x, int64_t wanted) {
    const bool several = PyTuple_Check(x.ptr()) || PyList_Check(x.ptr());
    const py::object tuple = several ? py::reinterpret_borrow<py::object>(x) : py::object();
    const Py_ssize_t count = several ? PySequence_Fast_GET_SIZE(x.ptr()) : 1;
    int64_t columns = 0;
    for (Py_ssize_t i = 0; i < count; ++i) {
      std::string where = "MLP: x";
      if (several) where += "[" + std::to_string(i) + "]";
      arrays.push_back(load_float(several ? py::handle(PySequence_Fast_GET_ITEM(x.ptr(), i)) : x, where));
      const Array& a = arrays.back();
      if (a.ndim != 2) raise_value(where + " must have shape [B, C], got " + shape_text(a.shape, a.ndim));
      if (!a.aligned) raise_value(where + " must be aligned");
      if (i == 0) rows = a.shape[0];
      if (a.shape[0] != rows)
        raise_value(where + " must have " + std::to_string(rows) + " rows like x[0], got " +
                    std::to_string(a.shape[0]));
      check_kind_like(a, where.c_str(), arrays[0], "x[0]");
      columns += a.shape[1];
      parts.push_back({reinterpret_cast<const float*>(a.data), a.shape[1],
                       a.strides[0] / static_cast<int64_t>(sizeof(float)),
                       a.strides[1] / static_cast<int64_t>(sizeof(float))});
    }
    if (columns != wanted)
      raise_value("MLP: x must have " + std::to_string(wanted) + " columns, got " + std::to_string(columns));
  }
};

class MlpCore {
 public:
  MlpCore(const std::vector<int64_t>& sizes, const std::string& activation, int64_t n, bool stacked, bool layer_norm,
          int64_t dueling)
      : mlp_(std::make_unique<Mlp>(sizes, activation_of(activation), n, layer_norm, dueling)), stacked_(stacked) {}

  int64_t size() const { return mlp_->per_network() * mlp_->networks(); }

  py::object forward(py::handle vector, py::handle x, int64_t first, bool cached) {
    const Array v = load_float(vector, "MLP: vector");
    const float* p = load_flat(v, "MLP: vector", size(), false);
    const Inputs in(x, mlp_->inputs());
    int64_t shape[3] = {first, in.rows, mlp_->outputs()};
    const int skip = stacked_ ? 0 : 1;
    // The call's kind of array; without parts there are no inputs to be like.
    Result out = allocate_like(in.arrays[0], DType::f32, shape + skip, 3 - skip);
    float* to = reinterpret_cast<float*>(out.data);
    const int threads = threads_for(mlp_->microseconds(in.rows, first));
    without_gil([&] {
      std::lock_guard<std::mutex> lock(mlp_->busy());
      if (cached)
        mlp_->forward_cached(p, in.parts, in.rows, first, to, threads);
      else
        mlp_->forward(p, in.parts, in.rows, first, to, threads);
      return 0;
    });
    return hand_back(std::move(out), in.arrays[0]);
  }

  py::object backward(py::handle d_out, py::handle grad, int64_t first, int64_t last) {
    const Array d = load_float(d_out, "MLP: d_out");
    Array g;
    float* to = nullptr;
    if (!grad.is_none()) {
      g = load_float(grad, "MLP: grad");
      to = load_flat(g, "MLP: grad", size(), true);
    }
    const bool wants_inputs = last > first;
    Result inputs;
    const float* from = nullptr;
    std::vector<float> copy;
    int64_t rows = 0, networks = 0;
    {
      const auto shape_now = without_gil([&] {
        std::lock_guard<std::mutex> lock(mlp_->busy());
        return std::make_pair(mlp_->cached_rows(), mlp_->cached_networks());
      });
      rows = shape_now.first, networks = shape_now.second;
    }
    if (networks == 0) throw std::runtime_error("MLP: backward needs a forward_cached before it");
    check_d_out(d, rows, networks);
    if (d.is_contiguous() && d.aligned) {
      from = reinterpret_cast<const float*>(d.data);
    } else {
      copy.resize(static_cast<size_t>(d.size()));
      const int64_t columns = mlp_->outputs(), skip = stacked_ ? 1 : 0;
      for (int64_t k = 0; k < networks; ++k)
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < columns; ++j)
            std::memcpy(&copy[(k * rows + i) * columns + j],
                        d.data + (skip ? k * d.strides[0] : 0) + i * d.strides[skip] + j * d.strides[skip + 1],
                        sizeof(float));
      from = copy.data();
    }
    const int64_t shape[2] = {rows, last - first};
    if (wants_inputs) inputs = allocate_like(d, DType::f32, shape, 2);
    const int threads = threads_for(2 * mlp_->microseconds(rows, networks));
    const bool same = without_gil([&] {
      std::lock_guard<std::mutex> lock(mlp_->busy());
      // Another thread may have been here since.
      if (mlp_->cached_rows() != rows || mlp_->cached_networks() != networks) return false;
      if (to && networks < mlp_->networks()) std::fill(to + networks * mlp_->per_network(), to + size(), 0.0f);
      mlp_->backward(from, to, reinterpret_cast<float*>(inputs.data), first, last, threads);
      return true;
    });
    if (!same) throw std::runtime_error("MLP: another thread called forward_cached during backward");
    return wants_inputs ? hand_back(std::move(inputs), d) : py::none();
  }

 private:
  static Activation activation_of(const std::string& name) {
    return name == "relu"   ? Activation::relu
           : name == "tanh" ? Activation::tanh
           : name == "silu" ? Activation::silu
                            : Activation::none;
  }

  void check_d_out(const Array& d, int64_t rows, int64_t networks) const {
    const int64_t all[3] = {networks, rows, mlp_->outputs()};
    const int64_t* wanted = all + (stacked_ ? 0 : 1);
    const int ndim = stacked_ ? 3 : 2;
    if (d.ndim != ndim || !std::equal(wanted, wanted + ndim, d.shape.begin())) {
      std::array<int64_t, 3> shape{};
      std::copy(wanted, wanted + ndim, shape.begin());
      raise_value("MLP: d_out must have shape " + shape_text(shape, ndim) +
                  " like the outputs of forward_cached, got " + shape_text(d.shape, d.ndim));
    }
  }

  std::unique_ptr<Mlp> mlp_;
  bool stacked_;
};

// All checked by FlatAdam in Python, but for the arrays. `beta1_t`, `beta2_t`: beta^t.
double flat_adam(py::handle param, py::handle grad, py::handle exp_avg, py::handle exp_avg_sq, py::handle target,
                 py::handle average, double lr, double beta1, double beta2, double eps, double weight_decay,
                 double steps, double max_norm, double tau, double average_weight) {
  const char* const names[] = {"vector", "grad", "exp_avg", "exp_avg_sq", "target", "average"};
  const py::handle handles[] = {param, grad, exp_avg, exp_avg_sq, target, average};
  std::array<Array, 6> arrays;
  std::array<float*, 6> p{};
  for (int i = 0; i < 6; ++i) {
    if (handles[i].is_none()) continue;
    const std::string where = std::string("FlatAdam: ") + names[i];
    arrays[i] = load_float(handles[i], where);
    const int64_t n = i == 0 && arrays[0].ndim == 1 ? arrays[0].shape[0] : arrays[0].size();
    p[i] = load_flat(arrays[i], where, n, true);
    for (int j = 0; j < i; ++j)
      if (!handles[j].is_none() && arrays[i].may_overlap(arrays[j]))
        raise_value(where + " must not share memory with " + names[j]);
  }
  const FlatAdam f{p[0],
                   p[1],
                   p[2],
                   p[3],
                   arrays[0].size(),
                   max_norm,
                   p[4],
                   p[5],
                   static_cast<float>(tau),
                   static_cast<float>(average_weight)};
  AdamStep step{lr, beta1, beta2, eps, weight_decay, 1 - std::pow(beta1, steps), 1 - std::pow(beta2, steps)};
  return without_gil([&] { return flat_adam_step(f, step); });
}

void bind(py::handle m) {
  Class<MlpCore, std::vector<int64_t>, std::string, int64_t, bool, bool, int64_t>(
      m, "MlpCore(sizes, activation, n, stacked, layer_norm, dueling)")
      .property<&MlpCore::size>("size")
      .method<&MlpCore::forward>("forward(vector, x, first, cached)")
      .method<&MlpCore::backward>("backward(d_out, grad, begin, end)");
  def<&flat_adam>(
      m,
      "flat_adam(param, grad, exp_avg, exp_avg_sq, target, average, lr, beta1, beta2, eps, weight_decay, steps, "
      "max_norm, tau, average_weight)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
