// A Generator's state, uint64 [2] {seed, counter}, as the bindings take it and draw from it.
#pragma once

#include <mutex>

#include "binding/bind.h"

namespace fastrl {

inline uint64_t* load_state(py::handle state) {
  const Array s = load_cpu(state.ptr(), "generator: state", {DType::u64});
  if (s.ndim != 1 || s.shape[0] != 2 || s.strides[0] != 8) raise_value("generator: state must be uint64 [2]");
  return reinterpret_cast<uint64_t*>(s.data);  // the generator keeps it alive
}

#if !defined(__GNUC__)
inline std::mutex counter_mutex;
#endif

// The blocks counter .. counter + n - 1 of a generator, taken.
inline uint64_t take(uint64_t* state, int64_t n) {
#if defined(__GNUC__)
  return __atomic_fetch_add(state + 1, static_cast<uint64_t>(n), __ATOMIC_RELAXED);
#else
  std::lock_guard<std::mutex> lock(counter_mutex);
  const uint64_t before = state[1];
  state[1] = before + static_cast<uint64_t>(n);
  return before;
#endif
}

inline uint64_t peek(uint64_t* state) {
#if defined(__GNUC__)
  return __atomic_load_n(state + 1, __ATOMIC_RELAXED);
#else
  std::lock_guard<std::mutex> lock(counter_mutex);
  return state[1];
#endif
}

// Takes n blocks if the counter still stands at `expected`.
inline bool take_from(uint64_t* state, uint64_t expected, int64_t n) {
  const uint64_t after = expected + static_cast<uint64_t>(n);
#if defined(__GNUC__)
  return __atomic_compare_exchange_n(state + 1, &expected, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
#else
  std::lock_guard<std::mutex> lock(counter_mutex);
  if (state[1] != expected) return false;
  state[1] = after;
  return true;
#endif
}

}  // namespace fastrl
