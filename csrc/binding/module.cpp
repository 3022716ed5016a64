// The Python module fastrl._C. An op's bindings check its arguments, let go of the GIL and call its kernel.
#include <pybind11/pybind11.h>

#include "binding/function.h"
#include "binding/registry.h"
#include "core/levels.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled CPU kernels of fastrl; call them through fastrl.kernels.";
  fastrl::def<&fastrl::simd_level>(m, "simd_level()");
  fastrl::Binding::run_all(m);
}
