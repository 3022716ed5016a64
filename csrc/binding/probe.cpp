// `_probe`, for bench_loader: what a call costs but its kernel.
#include "binding/bind.h"

namespace fastrl {

// Four float32 inputs of one shape, two results of the first one's kind: all that a call of a scan costs but its
// kernel.
static py::tuple probe(py::handle a, py::handle b, py::handle c, py::handle d) {
  const Array x = load_cpu(a.ptr(), "probe: a", {DType::f32});
  const Array y = load_cpu(b.ptr(), "probe: b", {DType::f32});
  const Array z = load_cpu(c.ptr(), "probe: c", {DType::f32});
  const Array w = load_cpu(d.ptr(), "probe: d", {DType::f32});
  check_shape_like(y, "probe: b", x, "a");
  check_shape_like(z, "probe: c", x, "a");
  check_shape_like(w, "probe: d", x, "a");
  Result first = allocate_like(x, DType::f32, x.shape.data(), x.ndim);
  Result second = allocate_like(x, DType::f32, x.shape.data(), x.ndim);
  {
    ReleaseGil release;
    std::fill_n(reinterpret_cast<float*>(first.data), x.size(), 0.0f);
    std::fill_n(reinterpret_cast<float*>(second.data), x.size(), 1.0f);
  }
  return py::make_tuple(hand_back(std::move(first), x), hand_back(std::move(second), x));
}

static const Binding probe_binding([](py::handle m) { def<&probe>(m, "_probe(a, b, c, d)"); });

}  // namespace fastrl
