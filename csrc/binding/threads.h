// In how many threads a call runs.
#pragma once

namespace fastrl {

// What the module was told, else torch's count, else that of this process's processors.
int num_threads();

// Waking the pool costs about 50 us: only above about 200 us of work are other threads asked.
inline int threads_for(double microseconds) { return microseconds < 200 ? 1 : num_threads(); }

}  // namespace fastrl
