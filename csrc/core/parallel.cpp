#include "core/parallel.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastrl {
namespace {

thread_local bool inside_task = false;

class Pool {
 public:
  // Whoever holds this may call run; others work in their own thread instead of waiting.
  std::mutex busy;

  void run(int64_t n, int pieces, Task task, void* context) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      try {
        while (static_cast<int>(threads_.size()) < pieces - 1) threads_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {
        // No more threads to be had: those that are there, the caller at least, take all the pieces.
      }
      n_ = n, pieces_ = pieces, task_ = task, context_ = context;
      next_ = 0, unfinished_ = pieces;
      ++generation_;
    }
    wake_.notify_all();
    take_pieces();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return unfinished_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void work() {
    uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
      }
      take_pieces();
    }
  }

  void take_pieces() {
    for (;;) {
      int piece;
      int64_t n;
      int pieces;
      Task task;
      void* context;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        if (next_ >= pieces_) return;
        piece = next_++, n = n_, pieces = pieces_, task = task_, context = context_;
      }
      inside_task = true;
      std::exception_ptr error;  // out of memory, say: the caller gets it when all pieces are done
      try {
        task(context, n * piece / pieces, n * (piece + 1) / pieces);
      } catch (...) {
        error = std::current_exception();
      }
      inside_task = false;
      std::lock_guard<std::mutex> lock(mutex_);
      if (error && !error_) error_ = error;
      if (--unfinished_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  uint64_t generation_ = 0;
  int64_t n_ = 0;
  int pieces_ = 0, next_ = 0, unfinished_ = 0;
  Task task_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
};

std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  Pool* p = the_pool.load(std::memory_order_acquire);
  if (p) return *p;
  static std::mutex making;
  std::lock_guard<std::mutex> lock(making);
  p = the_pool.load(std::memory_order_acquire);
  if (!p) {
#if defined(__unix__) || defined(__APPLE__)
    // The child has none of the parent's threads: forget the pool (leaked on purpose) and make a new one when needed.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
    (void)registered;
#endif
    p = new Pool;
    the_pool.store(p, std::memory_order_release);
  }
  return *p;
}

}  // namespace

void run_parallel(int64_t n, int threads, Task task, void* context) {
  if (n <= 0) return;
  const int pieces = static_cast<int>(n < threads ? n : threads);
  if (pieces > 1 && !inside_task) {
    Pool& p = pool();
    std::unique_lock<std::mutex> lock(p.busy, std::try_to_lock);
    if (lock.owns_lock()) {
      p.run(n, pieces, task, context);
      return;
    }
  }
  task(context, 0, n);
}

}  // namespace fastrl
