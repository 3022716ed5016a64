// The vector work of conjugate gradient: conjugate_gradient.h. The loop, and the products, are in Python.
#include <cmath>
#include <vector>

#include "binding/bind.h"
#include "conjugate_gradient/conjugate_gradient.h"
#include "core/parallel.h"

namespace fastrl {
namespace {

const char* const kOp = "conjugate_gradient: ";

// [n], of the kind, dtype and shape of b.
Array load_like_b(py::handle x, const std::string& name, const Array& b) {
  const std::string where = kOp + name;
  Array a = load_cpu(x.ptr(), where.c_str(), {DType::f32, DType::f64});
  check_kind_like(a, where.c_str(), b, "b");
  check_dtype_like(a, where.c_str(), b, "b");
  check_shape_like(a, where.c_str(), b, "b");
  return a;
}

// One of the solve's own vectors, which are contiguous.
Array load_work(py::handle x, const char* name) {
  const std::string where = std::string(kOp) + name;
  Array a = load_cpu(x.ptr(), where.c_str(), {DType::f32, DType::f64});
  if (a.ndim != 1 || !a.is_contiguous()) raise_value(where + " must be a contiguous vector");
  return a;
}

Array load_work(py::handle x, const char* name, const Array& first) {
  Array a = load_work(x, name);
  if (a.dtype != first.dtype || a.shape[0] != first.shape[0])
    raise_value(std::string(kOp) + name + " must be like the other vectors");
  return a;
}

template <class T>
T* data_of(const Array& a) {
  return reinterpret_cast<T*>(a.data);
}

// A vector of the caller's that may be None.
template <class T>
class Optional {
 public:
  Optional(py::handle x, const char* name, const Array& b) {
    if (x.is_none()) return;
    array_ = load_like_b(x, name, b);
    numbers_.emplace_back(array_);
  }
  const T* data() const { return numbers_.empty() ? nullptr : numbers_[0].data(); }

 private:
  Array array_;
  std::vector<Contiguous<T>> numbers_;  // none or one
};

// Runs `op` over all pieces and adds their sums up in order.
template <class Op>
CgSums total(Op& op, int threads) {
  const int64_t pieces = cg_pieces(op.n);
  CgSums few[64], sum;
  std::vector<CgSums> many;
  if (pieces > 64) many.resize(static_cast<size_t>(pieces));
  op.sums = pieces > 64 ? many.data() : few;
  parallel_for(pieces, threads, op);
  for (int64_t i = 0; i < pieces; ++i) {
    sum.a += op.sums[i].a;
    sum.b += op.sums[i].b;
    sum.c += op.sums[i].c;
  }
  return sum;
}

int threads_of(const Array& a) { return threads_for(1e-3 * static_cast<double>(a.shape[0])); }

template <class T>
py::tuple start_of(const Array& b, const Array& x, py::handle z, py::handle inverse, double damping, const Array& r,
                   const Array& p) {
  const Contiguous<T> right(b);
  const Optional<T> product(z, "the result of matvec", b), scale(inverse, "preconditioner", b);
  CgStart<T> op{b.shape[0], right.data(),  data_of<T>(x), product.data(), scale.data(),
                damping,    data_of<T>(r), data_of<T>(p), nullptr};
  CgSums s;
  const int threads = threads_of(b);
  {
    ReleaseGil release;
    s = total(op, threads);
  }
  return py::make_tuple(s.a, s.b, s.c);
}

py::tuple cg_start(py::handle b, py::handle x, py::handle z, py::handle inverse, double damping, py::handle r,
                   py::handle p) {
  const Array right = load_cpu(b.ptr(), "conjugate_gradient: b", {DType::f32, DType::f64});
  if (right.ndim != 1)
    raise_value("conjugate_gradient: b must have shape [n], got " + shape_text(right.shape, right.ndim));
  const Array at = load_work(x, "x", right), residual = load_work(r, "r", right), direction = load_work(p, "p", right);
  return right.dtype == DType::f32 ? start_of<float>(right, at, z, inverse, damping, residual, direction)
                                   : start_of<double>(right, at, z, inverse, damping, residual, direction);
}

template <class T>
py::tuple step_of(const Array& x, const Array& x_next, const Array& r, const Array& r_next, const Array& p,
                  py::handle z, py::handle inverse, double damping, double rz, double target, bool fused) {
  const Array product_array = load_like_b(z, "the result of matvec", r);
  const Contiguous<T> product(product_array);
  const Optional<T> scale(inverse, "preconditioner", r);
  const int64_t n = r.shape[0];
  CgStatus status = CgStatus::running;
  CgSums s;
  const int threads = threads_of(r);
  {
    ReleaseGil release;
    CgCurvature<T> curvature{n, data_of<T>(p), product.data(), damping, nullptr};
    const double c = total(curvature, threads).a;
    if (!std::isfinite(c)) {
      status = CgStatus::breakdown;
    } else if (c <= 0) {
      status = CgStatus::negative_curvature;
    } else {
      CgUpdate<T> update{n,      data_of<T>(x), data_of<T>(r),      data_of<T>(p),      product.data(), scale.data(),
                         rz / c, damping,       data_of<T>(x_next), data_of<T>(r_next), nullptr};
      s = total(update, threads);
      if (!std::isfinite(s.a) || s.c != 0) {
        status = CgStatus::breakdown;
        s = {};
      } else if (s.a <= target) {
        status = CgStatus::converged;
      } else if (fused) {
        const CgDirection<T> next{n, data_of<T>(r_next), scale.data(), s.b / rz, data_of<T>(p)};
        parallel_for(cg_pieces(n), threads, next);
      }
    }
  }
  return py::make_tuple(static_cast<int>(status), s.a, s.b);
}

py::tuple cg_step(py::handle x, py::handle x_next, py::handle r, py::handle r_next, py::handle p, py::handle z,
                  py::handle inverse, double damping, double rz, double target, bool fused) {
  const Array residual = load_work(r, "r");
  const Array now = load_work(x, "x", residual), following = load_work(x_next, "x_next", residual);
  const Array residual_next = load_work(r_next, "r_next", residual), direction = load_work(p, "p", residual);
  return residual.dtype == DType::f32 ? step_of<float>(now, following, residual, residual_next, direction, z, inverse,
                                                       damping, rz, target, fused)
                                      : step_of<double>(now, following, residual, residual_next, direction, z, inverse,
                                                        damping, rz, target, fused);
}

template <class T>
double direction_of(py::handle y, const Array& r, const Array& p, double rz) {
  const Array array = load_like_b(y, "the result of preconditioner", r);
  const Contiguous<T> numbers(array);
  const int64_t n = r.shape[0];
  const int threads = threads_of(r);
  ReleaseGil release;
  CgDot<T> dot{n, data_of<T>(r), numbers.data(), nullptr};
  const double next = total(dot, threads).a;
  if (rz == 0) {
    std::copy_n(numbers.data(), n, data_of<T>(p));
  } else {
    const CgDirection<T> op{n, numbers.data(), nullptr, next / rz, data_of<T>(p)};
    parallel_for(cg_pieces(n), threads, op);
  }
  return next;
}

double cg_direction(py::handle y, py::handle r, py::handle p, double rz) {
  const Array residual = load_work(r, "r"), direction = load_work(p, "p", residual);
  return residual.dtype == DType::f32 ? direction_of<float>(y, residual, direction, rz)
                                      : direction_of<double>(y, residual, direction, rz);
}

void bind(py::handle m) {
  def<&cg_start>(m, "cg_start(b, x, z, inverse, damping, r, p)");
  def<&cg_step>(m, "cg_step(x, x_next, r, r_next, p, z, inverse, damping, rz, target, fused)");
  def<&cg_direction>(m, "cg_direction(y, r, p, rz)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
