// How the module finds the ops: each bind.cpp adds itself, and no list names it.
#pragma once

#include <pybind11/cast.h>

namespace fastrl {

namespace py = pybind11;

// At namespace scope in a bind.cpp: `static const Binding binding(&bind);`. The functions run when the module is
// imported.
class Binding {
 public:
  explicit Binding(void (*bind)(py::handle)) : bind_(bind), next_(first_) { first_ = this; }
  Binding(const Binding&) = delete;
  Binding& operator=(const Binding&) = delete;
  static void run_all(py::handle m) {
    for (const Binding* b = first_; b; b = b->next_) b->bind_(m);
  }

 private:
  void (*bind_)(py::handle);
  const Binding* next_;
  static inline const Binding* first_ = nullptr;  // set before any constructor runs
};

}  // namespace fastrl
