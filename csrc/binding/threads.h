// In how many threads a call runs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/parallel.h"

namespace fastrl {

// What the module was told, else torch's count, else that of this process's processors.
int num_threads();

// Waking the pool costs about 50 us: only above about 200 us of work are other threads asked.
inline int threads_for(double microseconds) { return microseconds < 200 ? 1 : num_threads(); }

// The same, in pieces of about 20 ms between which Ctrl-C is answered: for what may be left half done.
inline Threads threads_and_pieces(double microseconds) {
  return {threads_for(microseconds), static_cast<int64_t>(std::min(microseconds / 20e3, 1e6))};
}

}  // namespace fastrl
