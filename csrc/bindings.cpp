// The Python module fastrl._C: checks arguments, lets go of the GIL, calls a kernel. The ops are in bind_<op>.cpp.
#include "bindings.h"

#include <new>
#include <thread>

#include "sum_tree.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastrl {

// ---------------------------------------------------------------- threads
static int chosen_threads = 0;  // 0: the default, asked for anew at each large call; the GIL guards it

static int default_threads() {
  py::object torch = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("torch").ptr()));
  if (torch && py::hasattr(torch, "get_num_threads")) return py::cast<int>(torch.attr("get_num_threads")());
  PyErr_Clear();
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? static_cast<int>(n) : 1;
}

int num_threads() { return chosen_threads > 0 ? chosen_threads : default_threads(); }

// ---------------------------------------------------------------- signals and exceptions
static unsigned long main_thread = 0;  // the one in which Python runs signal handlers

// Runs the handlers of signals that have come; true if one raised, as that of Ctrl-C does. Called without the GIL.
static bool signal_raised() {
  if (PyThread_get_thread_ident() != main_thread) return false;
  const PyGILState_STATE state = PyGILState_Ensure();  // the main thread is never ended here: arrays.h, take_gil
  const bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

static void watch_signals() {
  main_thread = py::cast<unsigned long>(py::module_::import("threading").attr("main_thread")().attr("ident"));
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, [] { main_thread = PyThread_get_thread_ident(); });
#endif
  set_interrupt_check(&signal_raised);
}

static void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const Interrupted&) {  // the handler's exception is set already
  } catch (const std::bad_alloc&) {
    PyErr_SetString(PyExc_MemoryError, "fastrl: no memory for the work space of a call");
  }
}

// ---------------------------------------------------------------- what the loader costs
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

}  // namespace fastrl

PYBIND11_MODULE(_C, m) {
  using namespace fastrl;
  m.doc() = "Compiled CPU kernels of fastrl; call them through fastrl.kernels.";
  py::register_local_exception_translator(&translate);
  watch_signals();
  m.def("simd_level", [] { return simd_level(); });
  m.def("get_num_threads", &num_threads);
  m.def("set_num_threads", [](int n) { chosen_threads = n; });
  m.def("_probe", &probe, py::arg("a"), py::arg("b"), py::arg("c"), py::arg("d"));
  bind_conjugate_gradient(m);
  bind_adam(m);
  bind_gather_rows(m);
  bind_heads(m);
  bind_mlp(m);
  bind_mlp_fisher(m);
  bind_n_step_gather(m);
  bind_replay_ring(m);
  bind_scans(m);
  bind_sum_tree(m);
  bind_tanh_normal(m);
}
