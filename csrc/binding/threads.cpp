#include "binding/threads.h"

#include <cstdlib>
#include <thread>

#include "binding/function.h"
#include "binding/registry.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace fastrl {

static int chosen_threads = 0;  // 0: the default, asked for anew at each large call; the GIL guards it

static int default_threads() {
  py::object torch = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("torch").ptr()));
  if (torch && py::hasattr(torch, "get_num_threads")) return py::cast<int>(torch.attr("get_num_threads")());
  PyErr_Clear();
  const char* omp = std::getenv("OMP_NUM_THREADS");  // may be a list, one number a level: the first is ours
  const long wanted = omp ? std::strtol(omp, nullptr, 10) : 0;
  if (wanted > 0) return static_cast<int>(wanted < 1024 ? wanted : 1024);
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? static_cast<int>(n) : 1;
}

static void set_num_threads(int n) { chosen_threads = n; }

int num_threads() { return chosen_threads > 0 ? chosen_threads : default_threads(); }

static const Binding threads_binding([](py::handle m) {
  def<&num_threads>(m, "get_num_threads()");
  def<&set_num_threads>(m, "set_num_threads(n)");
});

}  // namespace fastrl
