#include "binding/array.h"
#include "binding/function.h"
#include "binding/registry.h"
#include "binding/xla_call.h"

namespace fastrl {

// The handlers of all ops, as JAX registers them: name -> capsule.
static py::dict jax_handlers(int major, int minor) {
  xla::api_version[0] = major, xla::api_version[1] = minor;
  py::dict all;
  for (const xla::Handler* h = xla::Handler::first; h; h = h->next)
    all[h->name] = py::capsule(reinterpret_cast<void*>(h->function), "xla._CUSTOM_CALL_TARGET");
  return all;
}

static const Binding xla_binding([](py::handle m) { def<&jax_handlers>(m, "jax_handlers(major, minor)"); });

}  // namespace fastrl
