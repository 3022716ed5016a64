// The tree's lock.
#pragma once

#include <atomic>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>

namespace fastrl {
namespace {

// A shared_mutex whose readers let a waiting writer go first: glibc's own lets them come and go for seconds.
class Mutex {
 public:
  void lock() {
    ++waiting_;
    {
      const std::lock_guard<std::mutex> first(gate_);
      mutex_.lock();
    }
    --waiting_;
  }
  void unlock() { mutex_.unlock(); }
  void lock_shared() {
    if (waiting_ > 0) {
      const std::lock_guard<std::mutex> after(gate_);
    }
    mutex_.lock_shared();
  }
  void unlock_shared() { mutex_.unlock_shared(); }

 private:
  std::shared_mutex mutex_;
  std::mutex gate_;
  std::atomic<int> waiting_{0};
};

// The tree whose lock this thread holds. A signal handler may run in the middle of a long call (check_interrupt) and
// use the same tree: an error then, where it would wait for its own thread.
thread_local const void* held = nullptr;

template <class Lock>
class Locked {
 public:
  Locked(Mutex& mutex, const void* tree) : lock_(mutex, std::defer_lock), before_(held) {
    if (held == tree)
      throw std::runtime_error("sum_tree: a signal handler used the tree in the middle of a call of it");
    lock_.lock();
    held = tree;
  }
  ~Locked() { held = before_; }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  Lock lock_;
  const void* before_;
};

using Read = Locked<std::shared_lock<Mutex>>;
using Write = Locked<std::unique_lock<Mutex>>;

}  // namespace
}  // namespace fastrl
