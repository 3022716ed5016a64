// Sum tree with 16 children a node: float32 or float64 leaves, float64 sums, smallest positive and largest value of
// each node. Parents are recomputed from their children, never changed by a difference, so nothing drifts.
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <shared_mutex>
#include <vector>

#include "core/common.h"
#include "core/parallel.h"

namespace fastrl {

constexpr int kFanout = 16;

// Inclusive prefix sums of the 16 children of a node, in the order that every backend uses (a Sklansky scan). In this
// order they never decrease, a zero child adds exactly nothing, and the last one is the node's sum.
FASTRL_HD inline void prefix_sums(double* x) {
  for (int h = 1; h < kFanout; h *= 2)
    for (int j = 0; j < kFanout; ++j)
      if (j & h) x[j] += x[(j & ~(2 * h - 1)) + h - 1];
}

// The largest priority of a float64 tree: sums of 2^31 - 1 of them stay finite.
constexpr double kMaxFloat64Priority = 0x1p960;

// The caller checks shapes and sizes; values are checked here, before anything is written.
class SumTree {
 public:
  virtual ~SumTree() = default;
  virtual BadItem update(const int64_t* indices, const double* priorities, int64_t n) = 0;
  virtual BadItem update(const int64_t* indices, const float* priorities, int64_t n) = 0;
  // p = (|td| + eps)^alpha, written over `td`, and if positive kept in the normal range of the leaf type; a leaf of 0
  // stays 0 where keep_zeros. `largest`: the largest p written.
  virtual BadItem update_from_td(const int64_t* indices, double* td, int64_t n, double alpha, double eps,
                                 bool keep_zeros, double* largest) = 0;
  // All leaves at once, in the leaf type. No other thread may write to them meanwhile.
  virtual BadItem load(const void* leaves) = 0;
  virtual BadItem get(const int64_t* indices, void* out, int64_t n) const = 0;  // out in the leaf type
  virtual void clear() = 0;
  virtual void copy_leaves(void* out) const = 0;

  // Holds all other threads off until release: a fork does, so that the child finds the tree whole and its lock free.
  // False where this thread is inside a long call of the tree, and so holds the lock already.
  virtual bool acquire() = 0;
  virtual void release() = 0;

  virtual double total() const = 0;
  virtual double min_positive() = 0;
  virtual double max() = 0;
  virtual int64_t count_positive() const = 0;

  enum class Status { ok, total_is_zero, too_few };

  // `bad`: the position of the first u outside [0, total], or -1. No other thread may write to u meanwhile.
  virtual Status find(const double* u, int64_t n, int64_t* out, Threads threads, double* total, int64_t* bad) const = 0;

  // `state` is {seed, counter}; the counter is advanced by n once the draw is known to succeed.
  virtual Status sample(uint64_t* state, bool stratified, int64_t n, int64_t* indices, double* probabilities,
                        Threads threads) const = 0;
  virtual Status sample_distinct(uint64_t* state, int64_t n, int64_t* indices, double* probabilities) = 0;
  // weights in the leaf type
  virtual Status sample_weighted(uint64_t* state, bool stratified, double beta, bool whole_tree, int64_t n,
                                 int64_t* indices, void* weights, Threads threads) = 0;
};

SumTree* make_sum_tree(int64_t capacity, bool float64);

// A tree in memory of the caller: sum_tree_leaves leaves, and nodes of sum_tree_node_bytes, aligned to kTreeAlign bytes
// and all 0 at first. It has no extremes, and no count of the positive ones.
std::unique_ptr<SumTree> sum_tree_in(int64_t capacity, bool float64, void* leaves, void* nodes);
inline int64_t sum_tree_leaves(int64_t capacity) { return (capacity + kFanout - 1) / kFanout * kFanout; }
size_t sum_tree_node_bytes(int64_t capacity, bool float64);
constexpr int64_t kTreeAlign = 64;

}  // namespace fastrl
