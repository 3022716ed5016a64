// The Python module fastrl._C. An op's bindings check its arguments, let go of the GIL and call its kernel.
#include "binding/registry.h"
#include "core/levels.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled CPU kernels of fastrl; call them through fastrl.kernels.";
  m.def("simd_level", &fastrl::simd_level);
  fastrl::Binding::run_all(m);
}
