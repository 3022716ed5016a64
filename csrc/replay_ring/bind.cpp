#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "binding/bind.h"
#include "binding/numpy.h"
#include "core/parallel.h"
#include "replay_ring/replay_ring.h"

namespace fastrl {
namespace {

constexpr int64_t kLongCopy = 1 << 16;  // bytes above which the GIL is let go of

// The memory of what is stored, or of one item of a call.
struct Column {
  py::object owner;
  char* data = nullptr;
  int type_num = 0;
  DType dtype = DType::other;
  int64_t item_bytes = 0;
  std::vector<int64_t> shape;  // of an item
};

class RingCore {
 public:
  RingCore(py::object obs, py::object next_obs, py::object action, py::object reward, py::object terminated,
           py::object truncated, py::object cut, py::object added, py::object start, py::object cursor,
           py::object broken, py::object depth, int64_t frames, const py::list& leaves)
      : frames_(frames) {
    for (py::handle leaf : leaves) leaves_.push_back(py::cast<std::pair<int64_t, int64_t>>(leaf));
    const int64_t envs = column(added, DType::i64, -1).shape0;
    const Loaded o = column(obs, DType::other, -1);
    const int64_t rows = o.shape0;
    if (envs < 1 || rows < 3 * envs || rows % envs) raise_value("replay_ring: obs must have shape [(slots + 1) * N]");
    obs_ = o.column;
    action_ = column(action, DType::other, rows).column;
    reward_ = column(reward, DType::f32, rows).column;
    flag_ = column(terminated, DType::boolean, rows).column;
    ReplayColumns c{};
    c.obs = obs_.data;
    c.next_obs = next_obs.is_none() ? nullptr : column(next_obs, DType::other, rows).column.data;
    if (c.next_obs && kept_.back().item_bytes != obs_.item_bytes) raise_value("replay_ring: next_obs must be like obs");
    c.action = action_.data;
    c.reward = reinterpret_cast<float*>(reward_.data);
    c.terminated = bytes(terminated, DType::boolean, rows);
    c.truncated = bytes(truncated, DType::boolean, rows);
    c.cut = bytes(cut, DType::boolean, rows);
    c.added = reinterpret_cast<int64_t*>(bytes(added, DType::i64, envs));
    c.start = reinterpret_cast<int64_t*>(bytes(start, DType::i64, envs));
    c.cursor = reinterpret_cast<int64_t*>(bytes(cursor, DType::i64, envs));
    c.broken = bytes(broken, DType::boolean, envs);
    c.depth = depth.is_none() ? nullptr : bytes(depth, DType::u8, rows);
    c.obs_bytes = obs_.item_bytes, c.action_bytes = action_.item_bytes;
    c.envs = envs, c.slots = rows / envs - 1, c.frames = frames;
    const bool stacks = frames > 1;
    if (frames < 1 || frames > 256 || c.slots <= frames || stacks != (c.depth != nullptr) || (stacks && c.next_obs))
      raise_value("replay_ring: frames must fit the columns");
    for (const auto& [offset, length] : leaves_)
      if (offset < 0 || length < 1 || offset + length > c.obs_bytes)
        raise_value("replay_ring: a leaf is outside of obs");
    stacked_ = obs_;
    if (stacks) stacked_.item_bytes *= frames, stacked_.shape.insert(stacked_.shape.begin(), frames);
    envs_ = envs;
    ring_ = std::make_unique<ReplayRing>(c);
    reward_scratch_.resize(envs);
    const py::object np = import_module("numpy");
    bool_type_ = np.attr("bool_"), int_type_ = np.attr("int64"), float_type_ = np.attr("float32");
  }

  // One step of every environment, if each argument is already what is stored; None if it has to be converted or
  // checked first, and then nothing is changed.
  py::object try_add(py::handle obs, py::handle action, py::handle reward, py::handle next_obs, py::handle terminated,
                     py::handle truncated, py::handle mask, py::handle episode_start, double priority, py::handle rows,
                     py::handle priorities) {
    ReplaySteps s{};
    s.envs = envs_;
    int64_t scalars[3];
    uint8_t flags[4];
    s.obs = read(obs, stacked_, &scalars[0]);
    s.action = s.obs ? read(action, action_, &scalars[1]) : nullptr;
    s.next_obs = s.action ? read(next_obs, stacked_, &scalars[2]) : nullptr;
    s.reward = s.next_obs ? read_reward(reward) : nullptr;
    s.terminated = s.reward ? read_flag(terminated, &flags[0]) : nullptr;
    s.truncated = s.terminated ? read_flag(truncated, &flags[1]) : nullptr;
    if (!s.truncated) return py::none();
    if (!mask.is_none() && !(s.mask = read_flag(mask, &flags[2]))) return py::none();
    if (!episode_start.is_none() && !(s.episode_start = read_flag(episode_start, &flags[3]))) return py::none();
    for (int64_t e = 0; e < envs_; ++e)
      if (!std::isfinite(s.reward[e]) && !(s.mask && !s.mask[e])) return py::none();
    if (frames_ > 1 && ring_->unshifted(s.obs, s.next_obs, s.mask, envs_) >= 0) return py::none();
    return py::int_(store(s, 1, priority, rows, priorities));
  }

  // [steps, envs, ...] arrays, of the environments from `first` on, that the caller has converted and checked.
  int64_t write(int64_t steps, int64_t first, int64_t envs, py::handle obs, py::handle action, py::handle reward,
                py::handle next_obs, py::handle terminated, py::handle truncated, py::handle mask,
                py::handle episode_start, double priority, py::handle rows, py::handle priorities) {
    if (steps < 0 || first < 0 || envs < 1 || first + envs > envs_) raise_value("replay_ring: no such environments");
    ReplaySteps s{};
    s.first = first, s.envs = envs;
    const int64_t n = steps * envs;
    s.obs = whole(obs, stacked_, n);
    s.action = whole(action, action_, n);
    s.reward = reinterpret_cast<const float*>(whole(reward, reward_, n));
    s.next_obs = whole(next_obs, stacked_, n);
    s.terminated = reinterpret_cast<const uint8_t*>(whole(terminated, flag_, n));
    s.truncated = reinterpret_cast<const uint8_t*>(whole(truncated, flag_, n));
    if (!mask.is_none()) s.mask = reinterpret_cast<const uint8_t*>(whole(mask, flag_, n));
    if (!episode_start.is_none()) s.episode_start = reinterpret_cast<const uint8_t*>(whole(episode_start, flag_, n));
    return store(s, steps, priority, rows, priorities);
  }

  // The first of the items whose next_obs is not its obs shifted by one frame, or -1.
  int64_t unshifted(int64_t steps, py::handle obs, py::handle next_obs, py::handle mask) const {
    const int64_t n = steps * envs_;
    const char *from = whole(obs, stacked_, n), *to = whole(next_obs, stacked_, n);
    const auto* kept = mask.is_none() ? nullptr : reinterpret_cast<const uint8_t*>(whole(mask, flag_, n));
    return ring_->unshifted(from, to, kept, n);
  }

  // The numbers of the transitions in `rows`, new; and those of the [B, ...] arrays in the list next_obs, of the rows
  // `last`, put right that no row has. Not for stacks.
  py::object finish(py::handle rows, py::handle last, const py::list& next_obs) const {
    const Array r = index(rows, "replay_ring: rows"), l = index(last, "replay_ring: last");
    const int64_t n = check_pairs(r, l);
    if (frames_ > 1) raise_value("replay_ring: it has stacks");
    const std::vector<ReplayLeaf> reached = outputs(next_obs, n);
    const Contiguous<int64_t> row(r), end(l);
    check_inside(row);
    if (end.data() != row.data()) check_inside(end);
    Result out = allocate_numpy(DType::i64, &n, 1);
    auto* numbers = reinterpret_cast<int64_t*>(out.data);
    if (n * obs_.item_bytes < kLongCopy) {
      ring_->finish(row.data(), end.data(), n, numbers, reached);
    } else {
      ReleaseGil release;
      ring_->finish(row.data(), end.data(), n, numbers, reached);
    }
    return std::move(out.object);
  }

  // The numbers of the transitions in `rows`, new; the [B, frames, ...] arrays of each leaf in the lists obs and
  // next_obs get their stacks and those that the rows `last` reached.
  py::object stacks(py::handle rows, py::handle last, const py::list& obs, const py::list& next_obs) const {
    const Array r = index(rows, "replay_ring: rows"), l = index(last, "replay_ring: last");
    const int64_t n = check_pairs(r, l);
    if (frames_ == 1) raise_value("replay_ring: it has no stacks");
    const std::vector<ReplayLeaf> from = outputs(obs, n), reached = outputs(next_obs, n);
    const Contiguous<int64_t> row(r), end(l);
    check_inside(row);
    if (end.data() != row.data()) check_inside(end);
    Result out = allocate_numpy(DType::i64, &n, 1);
    auto* numbers = reinterpret_cast<int64_t*>(out.data);
    const Threads threads = threads_and_pieces(static_cast<double>(2 * n * stacked_.item_bytes) * 1e-4);  // 10 GB/s
    ReleaseGil release;
    parallel_for(n, threads, [&](int64_t first, int64_t past) {
      ring_->stacks(row.data(), end.data(), first, past, numbers, from, reached);
    });
    return std::move(out.object);
  }

  // Windows of at most `steps` transitions from each of `rows` [B] on: the number of the first one [B], where there is
  // a step [B, steps], and the discounts gamma (1 - terminated) there, all new. Of each of the arrays `sources` of all
  // rows the windows go to the array of `outs` [B, steps, ...], with zeros behind them; those in the list next_obs are
  // put right as in `finish`.
  py::tuple windows(py::handle rows, int64_t steps, double gamma, const py::list& sources, const py::list& outs,
                    const py::list& next_obs) const {
    const Array r = index(rows, "replay_ring: rows");
    const Contiguous<int64_t> row(r);
    check_inside(row);
    if (frames_ > 1) raise_value("replay_ring: it has stacks");
    if (steps < 1 || sources.size() != outs.size()) raise_value("replay_ring: one array of each source");
    const int64_t n = row.size();
    std::vector<ReplaySource> plans;
    double bytes = 0;
    for (size_t i = 0; i < sources.size(); ++i) {
      const Array from = load(py::object(sources[i]).ptr(), "replay_ring: sources");
      const Array to = load(py::object(outs[i]).ptr(), "replay_ring: windows");
      ReplaySource s{from.data, to.data, from.strides[0], from.itemsize};
      bool is_good = from.ndim >= 1 && from.shape[0] >= ring_->rows() && to.dtype == from.dtype && to.is_contiguous();
      for (int d = from.ndim - 1; d > 0; s.bytes *= from.shape[d--])
        is_good = is_good && (from.strides[d] == s.bytes || from.shape[d] == 1);
      if (!is_good || !to.writable || to.size() * to.itemsize != n * steps * s.bytes)
        raise_value("replay_ring: windows must be like rows of their sources");
      plans.push_back(s);
      bytes += static_cast<double>(s.bytes);
    }
    const std::vector<ReplayLeaf> reached = outputs(next_obs, n * steps);
    const int64_t shape[] = {n, steps};
    Result numbers = allocate_numpy(DType::i64, &n, 1), mask = allocate_numpy(DType::boolean, shape, 2),
           discount = allocate_numpy(DType::f32, shape, 2);
    auto* number = reinterpret_cast<int64_t*>(numbers.data);
    std::vector<int64_t> lengths(static_cast<size_t>(n));
    int64_t* const length = lengths.data();
    const Threads threads = threads_and_pieces(static_cast<double>(n * steps) * bytes * 1e-4);  // 10 GB/s
    {
      ReleaseGil release;
      parallel_for(n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          number[b] = ring_->number(row.data()[b]);
          length[b] = ring_->window(row.data()[b], steps, static_cast<float>(gamma),
                                    reinterpret_cast<uint8_t*>(mask.data) + b * steps,
                                    reinterpret_cast<float*>(discount.data) + b * steps);
        }
        for (ReplaySource s : plans) {
          s.out += begin * steps * s.bytes;
          ring_->copy_windows(s, row.data() + begin, length + begin, end - begin, steps);
        }
      });
      ring_->finish_windows(row.data(), length, n, steps, reached);
    }
    return py::make_tuple(std::move(numbers.object), std::move(mask.object), std::move(discount.object));
  }

  // The rows of transitions by their numbers, and how many of them are held no more, or ~b of the first unknown one.
  py::tuple locate(py::handle numbers) const {
    const Array a = index(numbers, "replay_ring: numbers");
    const Contiguous<int64_t> number(a, /*copy=*/true);
    const int64_t n = a.shape[0];
    Result out = allocate_numpy(DType::i64, &n, 1);
    const int64_t stale = ring_->locate(number.data(), n, reinterpret_cast<int64_t*>(out.data));
    return py::make_tuple(std::move(out.object), stale);
  }

  // The rows whose next observation is kept apart, and those observations as bytes.
  py::tuple extras() const { return kept(obs_.item_bytes, &ReplayRing::extra); }
  // The rows with a head, and these as bytes.
  py::tuple heads() const { return kept(head_bytes(), &ReplayRing::head); }

  void set_extras(py::handle rows, py::handle data) { keep(rows, data, obs_.item_bytes, &ReplayRing::set_extra); }
  void set_heads(py::handle rows, py::handle data) { keep(rows, data, head_bytes(), &ReplayRing::set_head); }

 private:
  struct Loaded {
    Column column;
    int64_t shape0;
  };

  static Array index(py::handle rows, const char* where) {
    Array a = load_cpu(rows.ptr(), where, {DType::i64, DType::i32});
    check_ndim_1(a, where);
    return a;
  }

  static int64_t check_pairs(const Array& rows, const Array& last) {
    if (last.shape[0] != rows.shape[0]) raise_value("replay_ring: last must be like rows");
    return rows.shape[0];
  }

  void check_inside(const Contiguous<int64_t>& rows) const {
    for (int64_t i = 0; i < rows.size(); ++i)
      if (rows.data()[i] < 0 || rows.data()[i] >= ring_->rows()) throw py::index_error("replay_ring: a row is outside");
  }

  std::vector<ReplayLeaf> outputs(const py::list& arrays, int64_t n) const {
    std::vector<ReplayLeaf> found;
    if (arrays.size() != leaves_.size()) raise_value("replay_ring: one array of each leaf");
    for (size_t i = 0; i < leaves_.size(); ++i) {
      const Array x = load(py::object(arrays[i]).ptr(), "replay_ring: observations");
      const auto [offset, length] = leaves_[i];
      if (x.size() * x.itemsize != n * frames_ * length || !x.is_contiguous() || !x.writable)
        raise_value("replay_ring: observations must be like rows");
      found.push_back({x.data, offset, length});
    }
    return found;
  }

  int64_t head_bytes() const { return (frames_ - 1) * obs_.item_bytes; }

  py::tuple kept(int64_t length, const char* (ReplayRing::*get)(int64_t) const) const {
    std::vector<int64_t> rows;
    for (int64_t row = 0; row < ring_->rows(); ++row)
      if ((ring_.get()->*get)(row)) rows.push_back(row);
    const auto n = static_cast<int64_t>(rows.size());
    const int64_t shape[] = {n, length};
    Result where = allocate_numpy(DType::i64, &n, 1), data = allocate_numpy(DType::u8, shape, 2);
    for (int64_t i = 0; i < n; ++i) {
      reinterpret_cast<int64_t*>(where.data)[i] = rows[i];
      std::memcpy(data.data + i * length, (ring_.get()->*get)(rows[i]), static_cast<size_t>(length));
    }
    return py::make_tuple(std::move(where.object), std::move(data.object));
  }

  void keep(py::handle rows, py::handle data, int64_t length, void (ReplayRing::*set)(int64_t, const char*)) {
    const Array r = index(rows, "replay_ring: rows");
    const Array x = load_cpu(data.ptr(), "replay_ring: data", {DType::u8});
    if (x.size() != r.shape[0] * length || !x.is_contiguous()) raise_value("replay_ring: data must be like rows");
    const Contiguous<int64_t> row(r);
    check_inside(row);
    for (int64_t i = 0; i < row.size(); ++i) (ring_.get()->*set)(row.data()[i], x.data + i * length);
  }

  // `other` takes any dtype.
  Loaded column(const py::object& array, DType dtype, int64_t rows) {
    if (!is_numpy(array.ptr())) raise_type("replay_ring: columns must be NumPy arrays");
    const Array a = load(array.ptr(), "replay_ring: column");
    if (a.ndim < 1 || !a.is_contiguous() || !a.writable || (rows >= 0 && a.shape[0] != rows) ||
        (dtype != DType::other && a.dtype != dtype))
      raise_value("replay_ring: a column has a wrong shape or dtype");
    Column c;
    c.owner = array, c.data = a.data, c.dtype = a.dtype, c.item_bytes = a.itemsize;
    c.type_num = numpy_array(array.ptr())->descr->type_num;
    for (int d = 1; d < a.ndim; ++d) c.shape.push_back(a.shape[d]), c.item_bytes *= a.shape[d];
    kept_.push_back(c);
    return {c, a.shape[0]};
  }

  uint8_t* bytes(const py::object& array, DType dtype, int64_t rows) {
    return reinterpret_cast<uint8_t*>(column(array, dtype, rows).column.data);
  }

  // The data of a C-contiguous NumPy array of [N, *shape], or for one environment of `shape`, in native byte order; or
  // null.
  const char* data_of(PyObject* o, const std::vector<int64_t>& shape) const {
    const NumpyArray* a = numpy_array(o);
    const int lead = a->nd - static_cast<int>(shape.size());
    if (lead < 0 || lead > 1 || (lead == 0 ? envs_ != 1 : a->dimensions[0] != envs_)) return nullptr;
    for (size_t d = 0; d < shape.size(); ++d)
      if (a->dimensions[lead + d] != shape[d]) return nullptr;
    return a->is_contiguous() && a->descr->is_native() ? a->data : nullptr;
  }

  const char* read(py::handle value, const Column& c, int64_t* scalar) const {
    PyObject* o = value.ptr();
    if (is_plain_numpy(o)) {
      const int type = numpy_array(o)->descr->type_num;
      const bool same = type == c.type_num || (c.dtype != DType::other && dtype_of_numpy(type) == c.dtype);
      return same ? data_of(o, c.shape) : nullptr;
    }
    if (envs_ != 1 || !c.shape.empty() || c.dtype != DType::i64) return nullptr;
    if (!PyLong_CheckExact(o) && Py_TYPE(o) != type(int_type_)) return nullptr;
    *scalar = PyLong_AsLongLong(o);
    if (*scalar == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      return nullptr;
    }
    return reinterpret_cast<const char*>(scalar);
  }

  const float* read_reward(py::handle value) {
    PyObject* o = value.ptr();
    if (is_plain_numpy(o)) {
      const DType t = dtype_of_numpy(numpy_array(o)->descr->type_num);
      const char* data = t == DType::f32 || t == DType::f64 ? data_of(o, {}) : nullptr;
      if (!data) return nullptr;
      for (int64_t e = 0; e < envs_; ++e) {
        double x;
        if (t == DType::f64)
          std::memcpy(&x, data + 8 * e, 8), reward_scratch_[e] = static_cast<float>(x);
        else
          std::memcpy(&reward_scratch_[e], data + 4 * e, 4);
      }
      return reward_scratch_.data();
    }
    if (envs_ != 1 || !(PyFloat_Check(o) || PyLong_CheckExact(o) || Py_TYPE(o) == type(float_type_))) return nullptr;
    const double x = PyFloat_AsDouble(o);
    if (x == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      return nullptr;
    }
    reward_scratch_[0] = static_cast<float>(x);
    return reward_scratch_.data();
  }

  const uint8_t* read_flag(py::handle value, uint8_t* scalar) const {
    PyObject* o = value.ptr();
    if (is_plain_numpy(o))
      return numpy_array(o)->descr->type_num == numpy_type(DType::boolean)
                 ? reinterpret_cast<const uint8_t*>(data_of(o, {}))
                 : nullptr;
    if (envs_ != 1 || !(PyBool_Check(o) || Py_TYPE(o) == type(bool_type_))) return nullptr;
    *scalar = PyObject_IsTrue(o) == 1;
    return scalar;
  }

  static PyTypeObject* type(const py::object& o) { return reinterpret_cast<PyTypeObject*>(o.ptr()); }

  // The caller holds the array. Not by `load`, since an item of 15 axes has 17 here.
  const char* whole(py::handle value, const Column& c, int64_t n) const {
    if (!is_plain_numpy(value.ptr())) raise_type("replay_ring: items must be NumPy arrays");
    const NumpyArray* a = numpy_array(value.ptr());
    int64_t size = 1, item = 1;
    for (int d = 0; d < a->nd; ++d) size *= a->dimensions[d];
    for (const int64_t length : c.shape) item *= length;
    if (a->descr->type_num != c.type_num || size != n * item || !a->is_contiguous() || !a->descr->is_native())
      raise_value("replay_ring: an item has a wrong shape or dtype");
    return a->data;
  }

  int64_t store(const ReplaySteps& s, int64_t steps, double priority, py::handle rows, py::handle priorities) {
    const Array r = load_cpu(rows.ptr(), "replay_ring: rows", {DType::i64});
    const Array p = load_cpu(priorities.ptr(), "replay_ring: priorities", {DType::f64});
    if (r.size() < 2 * steps * s.envs || p.size() < r.size() || !r.is_contiguous() || !p.is_contiguous())
      raise_value("replay_ring: rows and priorities must have room for 2 numbers a transition");
    auto* row = reinterpret_cast<int64_t*>(r.data);
    auto* value = reinterpret_cast<double*>(p.data);
    if (steps * s.envs * stacked_.item_bytes < kLongCopy) return ring_->write(s, steps, priority, row, value);
    ReleaseGil release;
    return ring_->write(s, steps, priority, row, value);
  }

  std::vector<Column> kept_;
  Column obs_, stacked_, action_, reward_, flag_;  // stacked_: an observation as it is given
  std::vector<float> reward_scratch_;
  std::unique_ptr<ReplayRing> ring_;
  py::object bool_type_, int_type_, float_type_;
  std::vector<std::pair<int64_t, int64_t>> leaves_;  // offset and bytes of each array of a stored frame
  int64_t envs_ = 0, frames_;
};

int64_t* counter(py::handle array) {
  const Array a = load_cpu(array.ptr(), "replay_ring: counter", {DType::i64});
  if (a.size() != 1 || !a.writable) raise_value("replay_ring: counter must be one number");
  return reinterpret_cast<int64_t*>(a.data);
}

// A number that another process reads: what this one wrote before is seen by who sees the number.
void publish(py::handle array, int64_t value) {
  volatile int64_t* to = counter(array);
  std::atomic_thread_fence(std::memory_order_release);
  *to = value;
}

int64_t observe(py::handle array) {
  const volatile int64_t* from = counter(array);
  const int64_t value = *from;
  std::atomic_thread_fence(std::memory_order_acquire);
  return value;
}

void bind(py::handle m) {
  using O = py::object;
  def<&publish>(m, "publish(counter, value)");
  def<&observe>(m, "observe(counter)");
  Class<RingCore, O, O, O, O, O, O, O, O, O, O, O, O, int64_t, py::list>(
      m,
      "ReplayRing(obs, next_obs, action, reward, terminated, truncated, cut, added, start, cursor, broken, depth, "
      "frames, leaves)")
      .method<&RingCore::try_add>(
          "try_add(obs, action, reward, next_obs, terminated, truncated, mask, episode_start, priority, rows, "
          "priorities)")
      .method<&RingCore::write>(
          "write(steps, first, envs, obs, action, reward, next_obs, terminated, truncated, mask, episode_start, "
          "priority, rows, "
          "priorities)")
      .method<&RingCore::unshifted>("unshifted(steps, obs, next_obs, mask)")
      .method<&RingCore::finish>("finish(rows, last, next_obs)")
      .method<&RingCore::stacks>("stacks(rows, last, obs, next_obs)")
      .method<&RingCore::windows>("windows(rows, steps, gamma, sources, outs, next_obs)")
      .method<&RingCore::locate>("locate(numbers)")
      .method<&RingCore::extras>("extras()")
      .method<&RingCore::set_extras>("set_extras(rows, data)")
      .method<&RingCore::heads>("heads()")
      .method<&RingCore::set_heads>("set_heads(rows, data)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
