// The only place that makes threads: a small pool, made at first use and made anew after fork.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastrl {

using Task = void (*)(void* context, int64_t begin, int64_t end);

// Calls task over [0, n) cut into at most `threads` pieces. Runs in the calling thread alone when threads <= 1, when
// the pool is busy with another call, or when called from inside a task.
void run_parallel(int64_t n, int threads, Task task, void* context);

template <class F>
void parallel_for(int64_t n, int threads, F&& f) {
  using Function = std::remove_reference_t<F>;
  run_parallel(
      n, threads, [](void* context, int64_t begin, int64_t end) { (*static_cast<Function*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace fastrl
