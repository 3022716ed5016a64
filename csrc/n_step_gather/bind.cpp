#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "core/parallel.h"
#include "n_step_gather/bind.h"

namespace fastrl {
namespace {

// An array like rewards: [C] or [C, N].
Array load_ring(py::handle object, const char* where, const Array& rewards, bool flags) {
  Array a = flags ? load_cpu(object.ptr(), where, {DType::boolean, DType::u8})
                  : load_cpu(object.ptr(), where, {DType::f32, DType::f64});
  check_kind_like(a, where, rewards, "rewards");
  if (!flags) check_dtype_like(a, where, rewards, "rewards");
  check_shape_like(a, where, rewards, "rewards");
  return a;
}

void set_column(RingFlags& column, const Array& a) {
  set_column(static_cast<RingColumn&>(column), a);
  column.largest = a.dtype == DType::boolean ? 255 : 1;
}

// One number for all environments, or one each.
class PerEnv {
 public:
  PerEnv(py::handle object, const char* where, const Array& rewards, int64_t low, int64_t high) {
    if (is_int(object.ptr())) {
      values_.push_back(to_int64_clipped(object.ptr()));
      if (values_[0] < low || values_[0] > high)
        raise_value(std::string(where) + " must be in " + range(low, high) + ", got " +
                    py::cast<std::string>(py::str(object)));
      return;
    }
    const int64_t envs = rewards.ndim == 2 ? rewards.shape[1] : 1;
    const Array a = load_cpu(object.ptr(), where, {DType::i64, DType::i32});
    check_kind_like(a, where, rewards, "rewards");
    if (a.ndim != 1 || a.shape[0] != envs)
      raise_value(std::string(where) + " must have shape (" + std::to_string(envs) + ",), got " +
                  shape_text(a.shape, a.ndim));
    const Contiguous<int64_t> numbers(a, /*copy=*/true);
    values_.assign(numbers.data(), numbers.data() + envs);
    for (int64_t env = 0; env < envs; ++env)
      if (values_[env] < low || values_[env] > high)
        raise_value(std::string(where) + "[" + std::to_string(env) + "] must be in " + range(low, high) + ", got " +
                    std::to_string(values_[env]));
    step_ = 1;
  }
  int64_t operator[](int64_t env) const { return values_[env * step_]; }
  const int64_t* data() const { return values_.data(); }
  int64_t step() const { return step_; }

 private:
  static std::string range(int64_t low, int64_t high) {
    return "[" + std::to_string(low) + ", " + std::to_string(high) + "]";
  }
  std::vector<int64_t> values_;
  int64_t step_ = 0;
};

// Every index is that of an item in the ring.
void check_items(const NStepRing& ring, const Contiguous<int64_t>& index, const PerEnv& cursor, const PerEnv& size) {
  const int64_t rows = ring.slots * ring.envs;
  for (int64_t i = 0; i < index.size(); ++i) {
    const int64_t flat = index.data()[i];
    if (flat < 0 || flat >= rows)
      throw py::index_error("n_step_gather: indices[" + std::to_string(i) + "] is " + std::to_string(flat) +
                            ", outside [0, " + std::to_string(rows) + ")");
    const int64_t slot = ring.envs == 1 ? flat : flat / ring.envs, env = flat - slot * ring.envs;
    if (steps_to_newest(slot, cursor[env], ring.slots) > size[env])
      throw py::index_error("n_step_gather: indices[" + std::to_string(i) + "] is " + std::to_string(flat) +
                            ", a slot that holds no item (cursor " + std::to_string(cursor[env]) + ", size " +
                            std::to_string(size[env]) + ")");
  }
}

[[noreturn]] void raise_bad_flag(const NStepRing& ring, const NStepItem& bad, bool is_2d, int64_t env) {
  static const char* const names[] = {"", "terminated", "truncated", "cut"};
  const RingFlags& flags = bad.bad == NStepItem::terminated  ? ring.terminated
                           : bad.bad == NStepItem::truncated ? ring.truncated
                                                             : ring.cut;
  raise_value(std::string("n_step_gather: ") + names[bad.bad] + "[" + std::to_string(bad.last) +
              (is_2d ? ", " + std::to_string(env) : "") + "] is " + std::to_string(flags.flag(bad.last, env)) +
              ", must be 0 or 1");
}

// The results, kept here until it is known that no flag is bad.
struct Computed {
  std::unique_ptr<double[]> returns;  // and the discounts behind them
  std::unique_ptr<int64_t[]> last;
};

Computed compute(const NStepRing& ring, bool is_double, const NStepBatch& starts, int64_t batch, bool is_2d) {
  Computed made{std::unique_ptr<double[]>(new double[2 * batch]), std::unique_ptr<int64_t[]>(new int64_t[batch])};
  // About 20 ns an item and 2 ns a step.
  const Threads threads = threads_and_pieces(static_cast<double>(batch) *
                                             (0.02 + 0.002 * static_cast<double>(std::min(starts.n, ring.slots))));
  std::mutex mutex;
  int64_t bad_at = -1;
  NStepItem bad;
  {
    ReleaseGil release;
    parallel_for(batch, threads, [&](int64_t begin, int64_t end) {
      NStepItem item;
      const int64_t at = n_step_gather(ring, is_double, starts, begin, end, made.returns.get(),
                                       made.returns.get() + batch, made.last.get(), &item);
      if (at < 0) return;
      const std::lock_guard<std::mutex> lock(mutex);
      if (bad_at < 0 || at < bad_at) bad_at = at, bad = item;
    });
  }
  if (bad_at >= 0) raise_bad_flag(ring, bad, is_2d, starts.indices[bad_at] % ring.envs);
  return made;
}

template <class T, class U>
void store(const Array& out, const U* values, int64_t n) {
  char* p = out.data;
  const int64_t stride = out.strides[0];
  for (int64_t i = 0; i < n; ++i, p += stride) {
    const T x = static_cast<T>(values[i]);
    std::memcpy(p, &x, sizeof x);
  }
}

py::object n_step_gather_binding(py::handle rewards_object, py::handle terminated_object, py::handle truncated_object,
                                 py::handle indices_object, py::handle cursor_object, py::handle size_object,
                                 py::handle gamma_object, py::handle n_object, py::handle next_values_object,
                                 py::handle cut_object, py::handle out) {
  const Array rewards = load_cpu(rewards_object.ptr(), "n_step_gather: rewards", {DType::f32, DType::f64});
  check_rewards(rewards);
  const Array terminated = load_ring(terminated_object, "n_step_gather: terminated", rewards, true);
  Array truncated;  // none are for None: what is terminated may be truncated as well
  if (!truncated_object.is_none()) truncated = load_ring(truncated_object, "n_step_gather: truncated", rewards, true);
  NStepRing ring;
  ring.slots = rewards.shape[0], ring.envs = rewards.ndim == 2 ? rewards.shape[1] : 1;
  set_column(ring.rewards, rewards);
  set_column(ring.terminated, terminated);
  set_column(ring.truncated, truncated.object ? truncated : terminated);

  const Array index_array = load_cpu(indices_object.ptr(), "n_step_gather: indices", {DType::i64, DType::i32});
  check_kind_like(index_array, "n_step_gather: indices", rewards, "rewards");
  check_ndim_1(index_array, "n_step_gather: indices");
  const Contiguous<int64_t> index(index_array, /*copy=*/true);
  const int64_t batch = index.size();
  const PerEnv cursor(cursor_object, "n_step_gather: cursor", rewards, 0, std::max<int64_t>(ring.slots - 1, 0));
  const PerEnv size(size_object, "n_step_gather: size", rewards, 0, ring.slots);

  ring.gamma = load_gamma(gamma_object);
  const int64_t n = load_n(n_object);
  ring.reach = discount_reach(ring.gamma, rewards.dtype == DType::f64, std::min(n, ring.slots));

  Array next_values, cut;
  if (!next_values_object.is_none()) {
    next_values = load_ring(next_values_object, "n_step_gather: next_values", rewards, false);
    set_column(ring.next_values, next_values);
  }
  if (!cut_object.is_none()) {
    cut = load_ring(cut_object, "n_step_gather: cut", rewards, true);
    set_column(ring.cut, cut);
  }

  const DType dtypes[] = {rewards.dtype, rewards.dtype, DType::i64};
  Array outs[3];
  if (!out.is_none())
    load_outs(out,
              {{"rewards", &rewards},
               {"terminated", &terminated},
               {"truncated", &truncated},
               {"indices", &index_array},
               {"next_values", &next_values},
               {"cut", &cut}},
              batch, outs, [&](const py::object& object, const char* where, int i) {
                Array a = load(object.ptr(), where);
                check_cpu(a, where);
                check_has_data(a, where);
                check_kind_like(a, where, rewards, "rewards");
                check_dtype(a, where, {dtypes[i]});
                return a;
              });
  check_items(ring, index, cursor, size);

  std::vector<Result> results;
  if (out.is_none())
    for (int i = 0; i < 3; ++i) {
      results.push_back(allocate_like(rewards, dtypes[i], &batch, 1));
      outs[i].data = results[i].data;
      outs[i].strides[0] = dtypes[i] == DType::f32 ? 4 : 8;
    }

  const Computed made = compute(ring, rewards.dtype == DType::f64, {index.data(), cursor.data(), cursor.step(), n},
                                batch, rewards.ndim == 2);
  const double *const returns = made.returns.get(), *const discounts = returns + batch;
  if (rewards.dtype == DType::f64) {
    store<double>(outs[0], returns, batch);
    store<double>(outs[1], discounts, batch);
  } else {
    store<float>(outs[0], returns, batch);
    store<float>(outs[1], discounts, batch);
  }
  store<int64_t>(outs[2], made.last.get(), batch);
  if (!out.is_none()) return py::reinterpret_borrow<py::object>(out);
  return py::make_tuple(hand_back(std::move(results[0]), rewards), hand_back(std::move(results[1]), rewards),
                        hand_back(std::move(results[2]), rewards));
}

void bind(py::handle m) {
  def<&n_step_gather_binding>(
      m, "n_step_gather(rewards, terminated, truncated, indices, cursor, size, gamma, n, next_values, cut, out)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
