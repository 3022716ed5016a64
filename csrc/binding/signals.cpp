// Ctrl-C in the middle of a long call.
#include "binding/array.h"
#include "binding/registry.h"
#include "core/parallel.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastrl {

static unsigned long main_thread = 0;  // the one in which Python runs signal handlers

// Runs the handlers of signals that have come; true if one raised, as that of Ctrl-C does. Called without the GIL.
static bool signal_raised() {
  if (PyThread_get_thread_ident() != main_thread) return false;
  const PyGILState_STATE state = PyGILState_Ensure();  // the main thread is never ended here: array.h, take_gil
  const bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

static void watch_signals() {
  main_thread = py::cast<unsigned long>(import_module("threading").attr("main_thread")().attr("ident"));
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, [] { main_thread = PyThread_get_thread_ident(); });
#endif
  set_interrupt_check(&signal_raised);
}

static const Binding signals_binding([](py::handle) { watch_signals(); });

}  // namespace fastrl
