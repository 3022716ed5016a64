// Methods of bound classes.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "binding/array.h"

namespace fastrl {

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

}  // namespace fastrl
