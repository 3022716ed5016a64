#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
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
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace fastrl {
namespace {

thread_local bool inside_task = false;

std::atomic<bool (*)()> interrupt_check{nullptr};

// Looks for `done` for about 100 us: calls often follow each other closely, and to sleep and be woken takes 50.
template <class F>
void look_for(F&& done) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::microseconds(100);
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return;
#if defined(__x86_64__) || defined(_M_X64)
      _mm_pause();
#endif
    }
  } while (Clock::now() < end);
}

class Pool {
 public:
  // Whoever holds this may call run; others work in their own thread instead of waiting.
  std::mutex busy;

  void run(int64_t n, int threads, int64_t pieces, Task task, void* context) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      try {
        while (static_cast<int>(threads_.size()) < threads - 1) threads_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {
        // No more threads to be had: those that are there, the caller at least, take all the pieces.
      }
      n_ = n, pieces_ = pieces, task_ = task, context_ = context;
      next_ = 0, unfinished_ = pieces, room_ = threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    take_pieces(/*ask=*/pieces > threads);
    look_for([this] { return unfinished_.load(std::memory_order_acquire) == 0; });
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return unfinished_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void work() {
    uint64_t seen = 0;
    for (;;) {
      look_for([&] { return generation_.load(std::memory_order_acquire) != seen; });
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        if (room_ == 0) continue;
        --room_;
      }
      take_pieces(/*ask=*/false);
    }
  }

  void take_pieces(bool ask) {
    for (;;) {
      int64_t piece, n, pieces;
      Task task;
      void* context;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        if (next_ >= pieces_) return;
        piece = next_++, n = n_, pieces = pieces_, task = task_, context = context_;
      }
      inside_task = true;
      std::exception_ptr error;  // out of memory, say: the caller gets it when the pieces begun are done
      try {
        task(context, n * piece / pieces, n * (piece + 1) / pieces);
        if (ask) check_interrupt();
      } catch (...) {
        error = std::current_exception();
      }
      inside_task = false;
      std::lock_guard<std::mutex> lock(mutex_);
      if (error) {
        if (!error_) error_ = error;
        unfinished_ -= pieces_ - next_;
        next_ = pieces_;
      }
      if (--unfinished_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  std::atomic<uint64_t> generation_{0};  // both change under the mutex, and are looked at without it
  std::atomic<int64_t> unfinished_{0};
  int64_t n_ = 0, pieces_ = 0, next_ = 0;
  int room_ = 0;  // how many more threads of the pool may take pieces of this call
  Task task_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
};

std::atomic<Pool*> the_pool{nullptr};

#if defined(__unix__) || defined(__APPLE__)
// The child has none of the parent's threads: it forgets the pool (leaked on purpose) and makes a new one when needed.
const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
#endif

// Without a lock, which a fork could copy locked.
Pool& pool() {
  Pool* p = the_pool.load(std::memory_order_acquire);
  if (p) return *p;
  Pool* const made = new Pool;
  if (the_pool.compare_exchange_strong(p, made, std::memory_order_acq_rel)) return *made;
  delete made;  // another thread was first
  return *p;
}

}  // namespace

void set_interrupt_check(bool (*check)()) { interrupt_check.store(check); }

void check_interrupt() {
  using Clock = std::chrono::steady_clock;
  static thread_local Clock::time_point next;
  const Clock::time_point now = Clock::now();
  if (now < next) return;
  next = now + std::chrono::milliseconds(100);
  bool (*const check)() = interrupt_check.load();
  if (check && check()) throw Interrupted{};
}

void run_parallel(int64_t n, Threads threads, Task task, void* context) {
  if (n <= 0) return;
  const int count = static_cast<int>(std::min<int64_t>(n, threads.count));
  const int64_t pieces = std::max<int64_t>(std::min<int64_t>(n, threads.pieces), count);
  if (count > 1 && !inside_task) {
    Pool& p = pool();
    std::unique_lock<std::mutex> lock(p.busy, std::try_to_lock);
    if (lock.owns_lock()) {
      p.run(n, count, pieces, task, context);
      return;
    }
  }
  if (pieces <= count) return task(context, 0, n);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    task(context, n * piece / pieces, n * (piece + 1) / pieces);
    check_interrupt();
  }
}

}  // namespace fastrl
