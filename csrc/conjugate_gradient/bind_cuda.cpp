// Conjugate gradient on a GPU: conjugate_gradient_cuda.h. The twin of bind_conjugate_gradient.cpp.
#include "binding/bind_cuda.h"
#include "conjugate_gradient/cuda.h"

namespace fastrl {
namespace {

const char* const kOp = "conjugate_gradient: ";

// [n], on the device of b and of its dtype and shape; none for None.
CgVector load_like_b(py::handle x, const std::string& name, const Array& b) {
  if (x.is_none()) return {};
  const std::string where = kOp + name;
  const Array a = load_cuda(x, where.c_str(), &b, "b", {DType::f32, DType::f64});
  check_dtype_like(a, where.c_str(), b, "b");
  check_shape_like(a, where.c_str(), b, "b");
  static const char empty = 0;
  return {a.size() == 0 ? &empty : a.data, a.strides[0]};
}

Array load_first(py::handle x, const char* name) {
  const std::string where = std::string(kOp) + name;
  Array a = load_cuda(x, where.c_str(), nullptr, "", {DType::f32, DType::f64});
  if (a.ndim != 1) raise_value(where + " must have shape [n], got " + shape_text(a.shape, a.ndim));
  return a;
}

// A vector of the solve itself: contiguous, of `size` numbers of `dtype`.
template <class T>
T* load_work(py::handle x, const char* name, const Array& first, int64_t size, DType dtype) {
  const std::string where = std::string(kOp) + name;
  const Array a = load_cuda(x, where.c_str(), &first, "b", {DType::f32, DType::f64});
  if (a.ndim != 1 || a.shape[0] != size || a.dtype != dtype || !a.is_contiguous())
    raise_value(where + " must be a contiguous vector like the others");
  return reinterpret_cast<T*>(a.data);
}

CudaCg call_of(const Array& first, py::handle state, py::handle scratch) {
  CudaCg c{};
  c.float64 = first.dtype == DType::f64;
  c.n = first.shape[0];
  c.state = load_work<double>(state, "state", first, kCgStateSize, DType::f64);
  c.scratch = load_work<double>(scratch, "scratch", first, kCgScratchSize, DType::f64);
  return c;
}

void* work(py::handle x, const char* name, const Array& first) {
  return load_work<void>(x, name, first, first.shape[0], first.dtype);
}

void cg_start(py::handle b, py::handle x, py::handle z, py::handle inverse, double damping, double rtol, double atol,
              py::handle r, py::handle p, py::handle state, py::handle scratch) {
  const Array right = load_first(b, "b");
  CudaCg c = call_of(right, state, scratch);
  c.b = load_like_b(b, "b", right);
  c.z = load_like_b(z, "the result of matvec", right);
  c.inverse = load_like_b(inverse, "preconditioner", right);
  c.x = work(x, "x", right), c.r = work(r, "r", right), c.p = work(p, "p", right);
  c.damping = damping, c.rtol = rtol, c.atol = atol;
  launch_on(right.api, right.device, "conjugate_gradient", [&](cudaStream_t s) { return cuda_cg_start(c, s); });
}

void cg_step(py::handle x, py::handle r, py::handle p, py::handle z, py::handle inverse, double damping,
             py::handle state, py::handle scratch, bool fused) {
  const Array residual = load_first(r, "r");
  CudaCg c = call_of(residual, state, scratch);
  if (z.is_none()) raise_type("conjugate_gradient: the result of matvec must be an array, got NoneType");
  c.z = load_like_b(z, "the result of matvec", residual);
  c.inverse = load_like_b(inverse, "preconditioner", residual);
  c.x = work(x, "x", residual), c.r = work(r, "r", residual), c.p = work(p, "p", residual);
  c.damping = damping, c.fused = fused;
  launch_on(residual.api, residual.device, "conjugate_gradient", [&](cudaStream_t s) { return cuda_cg_step(c, s); });
}

void cg_direction(py::handle y, py::handle r, py::handle p, py::handle state, py::handle scratch, bool first) {
  const Array residual = load_first(r, "r");
  CudaCg c = call_of(residual, state, scratch);
  if (y.is_none()) raise_type("conjugate_gradient: the result of preconditioner must be an array, got NoneType");
  c.y = load_like_b(y, "the result of preconditioner", residual);
  c.r = work(r, "r", residual), c.p = work(p, "p", residual);
  c.first = first;
  launch_on(residual.api, residual.device, "conjugate_gradient",
            [&](cudaStream_t s) { return cuda_cg_direction(c, s); });
}

void bind(py::handle m) {
  def<&cg_start>(m, "cg_start(b, x, z, inverse, damping, rtol, atol, r, p, state, scratch)");
  def<&cg_step>(m, "cg_step(x, r, p, z, inverse, damping, state, scratch, fused)");
  def<&cg_direction>(m, "cg_direction(y, r, p, state, scratch, first)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
