// adam_step: lists of arrays, all checked before anything is written.
#include <charconv>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "adam/adam.h"
#include "binding/bind.h"
#include "core/parallel.h"

namespace fastrl {
namespace {

// ---------------------------------------------------------------- arguments
enum List { kParams, kGrads, kExpAvgs, kExpAvgSqs, kSteps };
constexpr int kLists = 5, kPointers = 4;  // steps are numbers without dimensions
const char* const kNames[kLists] = {"params", "grads", "exp_avgs", "exp_avg_sqs", "steps"};

// "adam_step: <list>[<i>]", and from `list` on without the op. Cheap to make: there is one for every array of a call.
class Name {
 public:
  Name(int k, int64_t i) : list(text_ + 11) {
    char* end = text_;
    const auto add = [&](const char* part) {
      while (*part) *end++ = *part++;
    };
    add("adam_step: ");
    add(kNames[k]);
    *end++ = '[';
    end = std::to_chars(end, text_ + sizeof text_ - 2, i).ptr;
    *end++ = ']';
    *end = 0;
  }
  Name(const Name&) = delete;
  operator const char*() const { return text_; }
  const char* const list;

 private:
  char text_[48];
};

// The items of a list or a tuple. The references are ours: another thread may change the list meanwhile.
std::vector<py::object> items_of(py::handle list, const char* name) {
  if (!PyList_Check(list.ptr()) && !PyTuple_Check(list.ptr()))
    raise_type(std::string("adam_step: ") + name + " must be a list or tuple of arrays, got " + type_name(list.ptr()));
  std::vector<py::object> items(PySequence_Fast_GET_SIZE(list.ptr()));
  for (size_t i = 0; i < items.size(); ++i)
    items[i] = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(list.ptr(), i));
  return items;
}

double load_number(py::handle x, const char* name, bool below_1) {
  const std::string where = std::string("adam_step: ") + name;
  if (!is_real(x.ptr())) raise_type(where + " must be a float, got " + type_name(x.ptr()));
  const double value = to_double(x.ptr());
  if (!(value >= 0 && value < (below_1 ? 1 : std::numeric_limits<double>::infinity())))
    raise_value(where + " must be " + (below_1 ? "in [0, 1)" : "finite and >= 0") + ", got " + repr(value));
  return value;
}

class Lists {
 public:
  explicit Lists(const std::array<py::handle, kLists>& lists) {
    for (int k = 0; k < kLists; ++k) {
      objects_[k] = items_of(lists[k], kNames[k]);
      if (objects_[k].size() != objects_[0].size())
        raise_value(std::string("adam_step: ") + kNames[k] + " must have " + std::to_string(objects_[0].size()) +
                    " arrays like params, got " + std::to_string(objects_[k].size()));
    }
    arrays_.reserve(objects_[0].size() * kLists);
    for (int64_t i = 0; i < count(); ++i)
      for (int k = 0; k < kLists; ++k) {
        const Name where(k, i);
        arrays_.push_back(load_cpu(objects_[k][i].ptr(), where, {DType::f32, DType::f64}));
        const Array& a = arrays_.back();
        check_kind_like(a, where, arrays_[0], "params[0]");
        if (k == kSteps) {
          if (a.ndim != 0) raise_value(std::string(where) + " must have shape (), got " + shape_text(a.shape, a.ndim));
        } else if (k > 0) {
          const Name like(kParams, i);
          check_dtype_like(a, where, at(i, kParams), like.list);
          check_shape_like(a, where, at(i, kParams), like.list);
        }
        if (!a.aligned) raise_value(std::string(where) + " must be aligned");
        if (k == kGrads) continue;
        if (!a.writable) raise_value(std::string(where) + " must be writable");
        if (a.overlaps_itself()) raise_value(std::string(where) + " must not overlap itself");
      }
  }

  // Nothing that is written shares memory with another array of the call.
  void check_apart() const {
    struct Extent {
      const char *first, *last;
      int64_t position;
    };
    std::vector<Extent> extents;
    extents.reserve(arrays_.size());
    for (size_t j = 0; j < arrays_.size(); ++j) {
      const Array& a = arrays_[j];
      if (a.size() == 0) continue;
      const char *first = a.data, *last = a.data + a.itemsize;
      for (int d = 0; d < a.ndim; ++d) (a.strides[d] < 0 ? first : last) += a.strides[d] * (a.shape[d] - 1);
      extents.push_back({first, last, static_cast<int64_t>(j)});
    }
    const std::less<const char*> before{};
    std::sort(extents.begin(), extents.end(), [&](const Extent& x, const Extent& y) {
      return x.first != y.first ? before(x.first, y.first) : x.position < y.position;
    });
    const Extent *any = nullptr, *written = nullptr;  // of those seen, the one that ends last
    for (const Extent& e : extents) {
      const bool writes = e.position % kLists != kGrads;
      const Extent* held = writes ? any : written;
      if (held && before(e.first, held->last)) {
        const auto [low, high] = std::minmax(e.position, held->position);
        raise_value(std::string(Name(high % kLists, high / kLists)) + " must not share memory with " +
                    Name(low % kLists, low / kLists).list);
      }
      if (!any || before(any->last, e.last)) any = &e;
      if (writes && (!written || before(written->last, e.last))) written = &e;
    }
  }

  int64_t count() const { return static_cast<int64_t>(objects_[0].size()); }
  const Array& at(int64_t i, int k) const { return arrays_[i * kLists + k]; }

 private:
  std::array<std::vector<py::object>, kLists> objects_;
  std::vector<Array> arrays_;
};

// ---------------------------------------------------------------- layouts
// Whether the arrays of a position can be walked as one run of numbers: all C-contiguous, or all of one other
// order without gaps.
bool is_dense(const Lists& lists, int64_t i) {
  const Array& first = lists.at(i, kParams);
  bool contiguous = true;
  for (int k = 0; k < kPointers; ++k) contiguous &= lists.at(i, k).is_contiguous();
  if (contiguous) return true;
  for (int k = 1; k < kPointers; ++k)
    for (int d = 0; d < first.ndim; ++d)
      if (first.shape[d] != 1 && lists.at(i, k).strides[d] != first.strides[d]) return false;
  // The dimension that goes on where those before it end, again and again.
  int64_t expected = first.itemsize;
  for (bool found = true; found;) {
    found = false;
    for (int d = 0; d < first.ndim && !found; ++d)
      if (first.shape[d] != 1 && first.strides[d] == expected) expected *= first.shape[d], found = true;
  }
  return expected == first.itemsize * first.size();
}

template <class T>
void step_dense(const Lists& lists, int64_t i, int64_t begin, int64_t n, const AdamStep& step) {
  const auto pointer = [&](int k) { return reinterpret_cast<T*>(lists.at(i, k).data) + begin; };
  adam_step(pointer(kParams), pointer(kGrads), pointer(kExpAvgs), pointer(kExpAvgSqs), n, step);
}

// The same for arrays of any strides, through blocks of copies.
template <class T>
void step_strided(const Lists& lists, int64_t i, const AdamStep& step) {
  constexpr int64_t kBlock = 256;
  T blocks[kPointers][kBlock];
  const Array& first = lists.at(i, kParams);
  const auto copy = [&](int k, int64_t begin, int64_t n, bool back) {
    const Array& a = lists.at(i, k);
    for (int64_t j = 0; j < n; ++j) {
      char* item = a.data;
      int64_t rest = begin + j;
      for (int d = a.ndim - 1; d >= 0; rest /= a.shape[d--]) item += rest % a.shape[d] * a.strides[d];
      if (back)
        std::memcpy(item, &blocks[k][j], sizeof(T));
      else
        std::memcpy(&blocks[k][j], item, sizeof(T));
    }
  };
  const int64_t size = first.size();
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t n = std::min(kBlock, size - begin);
    for (int k = 0; k < kPointers; ++k) copy(k, begin, n, false);
    adam_step(blocks[kParams], blocks[kGrads], blocks[kExpAvgs], blocks[kExpAvgSqs], n, step);
    for (const int k : {kParams, kExpAvgs, kExpAvgSqs}) copy(k, begin, n, true);
  }
}

// ---------------------------------------------------------------- the op
// By several threads if there are many numbers; none depends on its neighbours, so no result depends on the threads.
void step_all(const Lists& lists, const std::vector<AdamStep>& steps) {
  std::vector<int64_t> ends(lists.count());  // of each position in the row of all numbers that can be walked
  std::vector<char> dense(lists.count());
  int64_t total = 0;
  for (int64_t i = 0; i < lists.count(); ++i) {
    dense[i] = is_dense(lists, i);
    total += dense[i] ? lists.at(i, kParams).size() : 0;
    ends[i] = total;
  }
  const int threads = threads_for(8e-4 * static_cast<double>(total));
  ReleaseGil release;
  parallel_for(total, threads, [&](int64_t begin, int64_t end) {
    int64_t start = 0;
    for (int64_t i = 0; i < lists.count(); start = ends[i++]) {
      const int64_t from = std::max(begin, start), to = std::min(end, ends[i]);
      if (from >= to) continue;
      const bool narrow = lists.at(i, kParams).dtype == DType::f32;
      (narrow ? step_dense<float> : step_dense<double>)(lists, i, from - start, to - from, steps[i]);
    }
  });
  for (int64_t i = 0; i < lists.count(); ++i) {
    if (dense[i]) continue;
    const bool narrow = lists.at(i, kParams).dtype == DType::f32;
    (narrow ? step_strided<float> : step_strided<double>)(lists, i, steps[i]);
  }
}

void adam_step_binding(py::handle params, py::handle grads, py::handle exp_avgs, py::handle exp_avg_sqs,
                       py::handle steps, py::handle lr, py::handle beta1, py::handle beta2, py::handle eps,
                       py::handle weight_decay) {
  const Lists lists({params, grads, exp_avgs, exp_avg_sqs, steps});
  AdamStep common{};
  common.lr = load_number(lr, "lr", false);
  common.beta1 = load_number(beta1, "beta1", true);
  common.beta2 = load_number(beta2, "beta2", true);
  common.eps = load_number(eps, "eps", false);
  common.weight_decay = load_number(weight_decay, "weight_decay", false);
  lists.check_apart();

  std::vector<AdamStep> each(lists.count(), common);
  std::vector<double> taken(lists.count());
  for (int64_t i = 0; i < lists.count(); ++i) {
    const Array& a = lists.at(i, kSteps);
    const bool narrow = a.dtype == DType::f32;
    const double before = narrow ? *reinterpret_cast<float*>(a.data) : *reinterpret_cast<double*>(a.data);
    if (!(before >= 0)) raise_value(std::string(Name(kSteps, i)) + " must be >= 0, got " + repr(before));
    taken[i] = narrow ? static_cast<double>(static_cast<float>(before + 1)) : before + 1;
    each[i].bias1 = 1 - std::pow(common.beta1, taken[i]);
    each[i].bias2 = 1 - std::pow(common.beta2, taken[i]);
  }
  for (int64_t i = 0; i < lists.count(); ++i) {
    const Array& a = lists.at(i, kSteps);
    if (a.dtype == DType::f32)
      *reinterpret_cast<float*>(a.data) = static_cast<float>(taken[i]);
    else
      *reinterpret_cast<double*>(a.data) = taken[i];
  }
  step_all(lists, each);
}

void bind(py::handle m) {
  def<&adam_step_binding>(
      m, "adam_step(params, grads, exp_avgs, exp_avg_sqs, steps, lr, beta1, beta2, eps, weight_decay)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
