// The only place that makes threads: a small pool, made at first use and made anew after fork; and the only one that
// asks whether a long call shall stop.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastrl {

using Task = void (*)(void* context, int64_t begin, int64_t end);

// How many threads a call may use, and in how many pieces at least it is cut: after each piece of a call with more
// pieces than threads, the calling thread asks whether to go on.
struct Threads {
  Threads(int count, int64_t pieces = 1) : count(count), pieces(pieces) {}
  int count;
  int64_t pieces;
};

// Thrown through a kernel that shall stop. Why is known to who set the check.
struct Interrupted {};

// `check` tells whether the call of this thread shall stop.
void set_interrupt_check(bool (*check)());

// Throws Interrupted if the call shall stop. Asks ten times a second at most, however often it is called.
void check_interrupt();

// Calls task over [0, n) cut into pieces. Runs in the calling thread alone when that is all it may use, when the pool
// is busy with another call, or when called from inside a task.
void run_parallel(int64_t n, Threads threads, Task task, void* context);

template <class F>
void parallel_for(int64_t n, Threads threads, F&& f) {
  using Function = std::remove_reference_t<F>;
  run_parallel(
      n, threads, [](void* context, int64_t begin, int64_t end) { (*static_cast<Function*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace fastrl
