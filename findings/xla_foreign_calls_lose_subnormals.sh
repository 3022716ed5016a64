#!/usr/bin/env bash
# JAX 0.10.2 on the CPU: XLA calls a foreign function (jax.ffi.ffi_call) with the processor set to take subnormal numbers
# as 0 and to give 0 for them, as it does for its own code. A handler that is exact elsewhere (called through ctypes in the
# same process, say) then loses them in plain C++ arithmetic, whatever the flags that it was compiled with.
# Seen: half of 4e-310, a subnormal float64, is 2e-310 from ctypes and 0.0 from the same library inside jax.jit.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"
cat >half.cpp <<'CPP'
#include "xla/ffi/api/ffi.h"

extern "C" double half(double x) { return 0.5 * x; }

static xla::ffi::Error Half(xla::ffi::Buffer<xla::ffi::F64> x, xla::ffi::ResultBuffer<xla::ffi::F64> y) {
  y->typed_data()[0] = x.typed_data()[0];
  y->typed_data()[1] = half(x.typed_data()[0]);
  return xla::ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(HalfHandler, Half,
                              xla::ffi::Ffi::Bind().Arg<xla::ffi::Buffer<xla::ffi::F64>>().Ret<xla::ffi::Buffer<xla::ffi::F64>>());
CPP
g++ -std=c++17 -w -O1 -fPIC -shared -I "$("$tmp/venv/bin/python" -c 'import jax; print(jax.ffi.include_dir())')" half.cpp -o half.so
"$tmp/venv/bin/python" -W ignore - <<'PY'
import ctypes

import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np

library = ctypes.CDLL("./half.so")
library.half.restype, library.half.argtypes = ctypes.c_double, [ctypes.c_double]
jax.ffi.register_ffi_target("half", jax.ffi.pycapsule(library.HalfHandler), platform="cpu")
inside = jax.jit(lambda x: jax.ffi.ffi_call("half", jax.ShapeDtypeStruct((2,), jnp.float64))(x))
for x in (4.0, 4e-310):
    arrived, halved = map(float, inside(np.float64(x)))
    print("jax", jax.__version__, "half of", x, "from ctypes:", library.half(x), "inside jit:", halved, "of", arrived)
    assert arrived == x and library.half(x) == x / 2 > 0
    assert halved == (2.0 if x == 4.0 else 0.0)
PY
