// What the files of bindings share: the module's thread count, Python scalars, and one function a family of ops that
// adds it to the module.
#pragma once

#include "arrays.h"
#include "parallel.h"

namespace fastrl {

int num_threads();

// Waking the pool costs about 50 us: only above about 200 us of work are other threads asked.
inline int threads_for(double microseconds) { return microseconds < 200 ? 1 : num_threads(); }

// The same, in pieces of about 20 ms between which Ctrl-C is answered: for what may be left half done.
inline Threads threads_and_pieces(double microseconds) {
  return {threads_for(microseconds), static_cast<int64_t>(std::min(microseconds / 20e3, 1e6))};
}

// Whole numbers and real numbers: Python's and NumPy's scalars; not bool, arrays or str.
bool is_int(PyObject* o);
bool is_real(PyObject* o);

// The number in an array without dimensions (of NumPy, of torch on the CPU, of JAX), or else the object itself.
py::object scalar_of(py::handle o);

// An int beyond float64 becomes inf, which every check refuses by its own text.
double to_double(PyObject* o);

// A Python int beyond int64 is clipped: outside every range, it reads the same.
int64_t to_int64_clipped(PyObject* o);

// The object of a bound method. Where __new__ alone made it, pybind11 would lend memory that nobody has written to.
template <class C>
C& self_of(py::handle self) {
  C& object = self.cast<C&>();
  if (!reinterpret_cast<py::detail::instance*>(self.ptr())->get_value_and_holder().holder_constructed())
    raise_type(type_name(self.ptr()) + ".__init__ must be called first");
  return object;
}

template <class R, class C, class... A>
auto method(R (C::*f)(A...)) {
  return [f](py::handle self, A... arguments) -> R { return (self_of<C>(self).*f)(std::forward<A>(arguments)...); };
}
template <class R, class C, class... A>
auto method(R (C::*f)(A...) const) {
  return [f](py::handle self, A... arguments) -> R { return (self_of<C>(self).*f)(std::forward<A>(arguments)...); };
}

void bind_conjugate_gradient(py::module_& m);
void bind_adam(py::module_& m);
void bind_gather_rows(py::module_& m);
void bind_heads(py::module_& m);
void bind_mlp(py::module_& m);
void bind_mlp_fisher(py::module_& m);
void bind_n_step_gather(py::module_& m);
void bind_replay_ring(py::module_& m);
void bind_scans(py::module_& m);
void bind_sum_tree(py::module_& m);
void bind_tanh_normal(py::module_& m);

}  // namespace fastrl
