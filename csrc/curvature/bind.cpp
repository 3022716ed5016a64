// Fisher products of small MLPs: mlp_fisher.h. fastrl/kernels/curvature/_torch.py makes one, and checks what it is
// given.
#include <algorithm>
#include <cstring>
#include <memory>

#include "binding/bind.h"
#include "curvature/mlp_fisher.h"
#include "mlp/pass.h"

namespace fastrl {
namespace {

const char* const kOp = "FisherVectorProduct: ";

// A float32 matrix of a known shape.
Array load_matrix(py::handle x, const char* name, int64_t rows, int64_t columns) {
  const std::string where = std::string(kOp) + name;
  Array a = load_cpu(x.ptr(), where.c_str(), {DType::f32});
  if (a.ndim != 2 || a.shape[0] != rows || a.shape[1] != columns)
    raise_value(where + " must have shape (" + std::to_string(rows) + ", " + std::to_string(columns) + "), got " +
                shape_text(a.shape, a.ndim));
  return a;
}

// A copy in `memory`, rows mlp::stride(columns) apart.
float* copy_padded(const Array& a, Arena& memory) {
  const int64_t rows = a.shape[0], columns = a.shape[1], width = mlp::stride(columns);
  float* const to = memory.take(rows * width);
  for (int64_t i = 0; i < rows; ++i) {
    float* row = to + i * width;
    const char* from = a.data + i * a.strides[0];
    if (a.strides[1] == sizeof(float))
      std::memcpy(row, from, static_cast<size_t>(columns) * sizeof(float));
    else
      for (int64_t j = 0; j < columns; ++j) std::memcpy(row + j, from + j * a.strides[1], sizeof(float));
    std::fill(row + columns, row + width, 0.0f);
  }
  return to;
}

// What products read is made anew by refresh, never changed: a product that runs meanwhile keeps what it began with.
// The GIL guards the pointer.
class SharedFisher {
 public:
  // layers: (in, out, activation, weight_at, bias_at) each. logits: of each categorical, how many; Gaussian: none.
  SharedFisher(int64_t n, const py::list& layers, int64_t log_std_at, const py::list& logits);
  // weights [out, in] of each layer; values: the inputs of the first layer and the outputs of each [rows, ...]; slopes:
  // of activation `other`; scale: MlpFisher's.
  void refresh(const py::list& weights, const py::list& values, const py::list& slopes, py::handle scale);
  py::object product(py::handle v, double damping) const;

 private:
  std::shared_ptr<const MlpFisher> now_;
};

SharedFisher::SharedFisher(int64_t n, const py::list& layers, int64_t log_std_at, const py::list& logits) {
  auto made = std::make_shared<MlpFisher>();
  MlpFisher& f = *made;
  f.n = n, f.log_std_at = log_std_at;
  for (py::handle item : layers) {
    const auto [in, out, activation, weight_at, bias_at] =
        py::cast<std::tuple<int64_t, int64_t, int, int64_t, int64_t>>(item);
    if (in < 1 || out < 1 || in > (1 << 20) || out > (1 << 20) || activation < 0 || activation > 3 ||
        (weight_at >= 0 && weight_at + in * out > n) || (bias_at >= 0 && bias_at + out > n) ||
        (!f.layers.empty() && f.layers.back().out != in))
      raise_value(std::string(kOp) + "the layers do not fit together");
    f.layers.push_back({in, out, static_cast<Activation>(activation), weight_at, bias_at});
  }
  if (f.layers.empty()) raise_value(std::string(kOp) + "there must be at least one layer");
  f.log_std_size = f.layers.back().out;
  for (py::handle size : logits) {
    const int64_t before = f.ends.empty() ? 0 : f.ends.back(), more = py::cast<int64_t>(size);
    if (more < 1 || more > f.log_std_size - before) raise_value(std::string(kOp) + "the logits do not fit the layers");
    f.ends.push_back(before + more);
  }
  if (!f.ends.empty() && f.ends.back() != f.log_std_size)
    raise_value(std::string(kOp) + "the logits do not fit the layers");
  if (log_std_at >= 0 && log_std_at + f.log_std_size > n)
    raise_value(std::string(kOp) + "the layers do not fit together");
  now_ = std::move(made);
}

void SharedFisher::refresh(const py::list& weights, const py::list& values, const py::list& slopes, py::handle scale) {
  const auto next = std::make_shared<MlpFisher>();
  MlpFisher& f = *next;
  f.n = now_->n, f.log_std_at = now_->log_std_at, f.log_std_size = now_->log_std_size;
  f.ends = now_->ends;
  for (const FisherLayer& l : now_->layers) f.layers.push_back({l.in, l.out, l.activation, l.weight_at, l.bias_at});
  const size_t count = f.layers.size();
  if (weights.size() != count || values.size() != count + 1 || slopes.size() != count)
    raise_value(std::string(kOp) + "there must be weights, values and slopes for each layer");
  const Array obs = load_cpu(values[0].ptr(), "FisherVectorProduct: observations", {DType::f32});
  const int64_t rows = obs.ndim == 2 ? obs.shape[0] : 0;
  if (rows < 1) raise_value(std::string(kOp) + "observations must have at least one row");
  // All are checked before the first is copied.
  FisherLayer& last = f.layers.back();
  std::vector<Array> w, x, s(count);
  for (size_t k = 0; k < count; ++k) {
    const FisherLayer& l = f.layers[k];
    w.push_back(load_matrix(weights[k], "weight", l.out, l.in));
    x.push_back(load_matrix(values[k], "the values of a layer", rows, l.in));
    if (l.activation == Activation::silu) s[k] = load_matrix(slopes[k], "the slopes of a layer", rows, l.out);
  }
  x.push_back(load_matrix(values[count], "the values of a layer", rows, last.out));
  const Array spread = load_matrix(scale, "the scale", f.ends.empty() ? 1 : rows, last.out);
  int64_t room = spread.shape[0] * mlp::stride(last.out);
  for (const FisherLayer& l : f.layers) {
    const int64_t in = mlp::stride(l.in), out = mlp::stride(l.out);
    room += l.out * in + l.in * out + rows * (in + 2 * out);
  }
  f.memory.reset(room + 16 * 6 * static_cast<int64_t>(count));
  for (size_t k = 0; k < count; ++k) {
    FisherLayer& l = f.layers[k];
    const int64_t out = mlp::stride(l.out);
    l.weight = copy_padded(w[k], f.memory);
    l.transposed = f.memory.take(l.in * out);
    tiles::transpose(l.weight, mlp::stride(l.in), l.out, l.in, l.transposed, out, mlp::padded(l.out));
    l.input = copy_padded(x[k], f.memory);
    if (l.activation == Activation::silu) l.slopes = copy_padded(s[k], f.memory);
  }
  if (last.activation != Activation::none) last.output = copy_padded(x[count], f.memory);
  f.scale = copy_padded(spread, f.memory);
  f.rows = rows;
  now_ = next;
}

py::object SharedFisher::product(py::handle v, double damping) const {
  const std::shared_ptr<const MlpFisher> now = now_;
  const MlpFisher& f = *now;
  const Array vector = load_cpu(v.ptr(), "FisherVectorProduct: v", {DType::f32});
  if (vector.ndim != 1 || vector.shape[0] != f.n)
    raise_value(std::string(kOp) + "v must have shape (" + std::to_string(f.n) + ",), got " +
                shape_text(vector.shape, vector.ndim));
  if (f.rows < 1) raise_value(std::string(kOp) + "refresh must be called first");
  const Contiguous<float> numbers(vector);
  Result out = allocate_like(vector, DType::f32, &f.n, 1);
  const Threads threads = threads_and_pieces(f.microseconds());
  {
    ReleaseGil release;
    f.product(numbers.data(), damping, reinterpret_cast<float*>(out.data), threads);
  }
  return hand_back(std::move(out), vector);
}

void bind(py::handle m) {
  Class<SharedFisher, int64_t, py::list, int64_t, py::list>(m, "MlpFisher(n, layers, log_std_at, logits)")
      .method<&SharedFisher::refresh>("refresh(weights, values, slopes, scale)")
      .method<&SharedFisher::product>("product(v, damping)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
