#include "binding/bind.h"
#include "cem/cem.h"

namespace fastrl {
namespace {

// A float32 array, whose shape fastrl/kernels/cem has checked, as contiguous numbers.
struct Numbers {
  Array array;
  std::vector<float> copy;
  const float* data;
  Numbers(py::handle x, const char* where) : array(load_cpu(x.ptr(), where, {DType::f32})) {
    data = reinterpret_cast<const float*>(array.data);
    if (array.is_contiguous() && array.aligned) return;
    copy.resize(static_cast<size_t>(array.size()));
    for (int64_t i = 0; i < array.size(); ++i) {
      int64_t rest = i;
      const char* from = array.data;
      for (int d = array.ndim - 1; d >= 0; rest /= array.shape[d--]) from += rest % array.shape[d] * array.strides[d];
      std::memcpy(&copy[static_cast<size_t>(i)], from, sizeof(float));
    }
    data = copy.data();
  }
};

py::tuple cem_argmax(const std::vector<int64_t>& sizes, int activation, bool layer_norm, bool dueling,
                     py::handle vector, py::handle obs, py::handle noise, int64_t elites, double std) {
  Mlp q(sizes, static_cast<Activation>(activation), 1, layer_norm, dueling);
  const Numbers p(vector, "cem_argmax: q.vector"), states(obs, "cem_argmax: obs"), normals(noise, "cem_argmax: noise");
  const Array &v = p.array, &s = states.array, &eps = normals.array;
  const bool fits = v.size() == q.per_network() && s.ndim == 2 && eps.ndim == 3 && q.outputs() == 1 &&
                    s.shape[1] + eps.shape[2] == q.inputs() && elites >= 1 && elites <= eps.shape[1] &&
                    eps.shape[0] >= 1;
  if (!fits) raise_value("cem_argmax: shapes do not fit");
  const int64_t rows = s.shape[0], actions = eps.shape[2];
  const int64_t shape[2] = {rows, actions};
  Result action = allocate_like(s, DType::f32, shape, 2), value = allocate_like(s, DType::f32, shape, 1);
  const CemArgmax op{&q,
                     states.data,
                     normals.data,
                     actions,
                     eps.shape[0],
                     eps.shape[1],
                     elites,
                     std,
                     reinterpret_cast<float*>(action.data),
                     reinterpret_cast<float*>(value.data)};
  const Threads threads = threads_and_pieces(q.microseconds(rows * eps.shape[0] * eps.shape[1], 1));
  {
    ReleaseGil release;
    q.prepare(p.data);
    parallel_for(rows, threads, op);
  }
  return py::make_tuple(hand_back(std::move(action), s), hand_back(std::move(value), s));
}

void bind(py::handle m) {
  def<&cem_argmax>(m, "cem_argmax(sizes, activation, layer_norm, dueling, vector, obs, noise, elites, std)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
