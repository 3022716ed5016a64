#include <algorithm>
#include <utility>

#include "binding/bind_cuda.h"
#include "n_step_gather/bind.h"
#include "n_step_gather/cuda.h"

namespace fastrl {
namespace {

const auto kFloats = {DType::f32, DType::f64, DType::f16, DType::bf16};
const auto kFlags = {DType::boolean, DType::u8};
const auto kInts = {DType::i64, DType::i32};

Array load_ring(py::handle x, const char* where, const Array& rewards, std::initializer_list<DType> allowed) {
  Array a = load_cuda(x, where, &rewards, "rewards", allowed);
  if (a.dtype != rewards.dtype && a.dtype != DType::boolean && a.dtype != DType::u8)
    raise_value(std::string(where) + " must have dtype " + dtype_name(rewards.dtype) + " like rewards, got " +
                dtype_name(a.dtype));
  check_shape_like(a, where, rewards, "rewards");
  return a;
}

CudaIndices numbers_of(const Array& a) { return {a.data, a.strides[0], a.dtype == DType::i32, 0}; }

// `cursor` or `size`: an int in [0, high], or an array [N], whose values are not checked here.
CudaIndices load_per_env(py::handle x, const char* where, const Array& rewards, int64_t envs, int64_t high,
                         Array& keep) {
  if (is_int(x.ptr())) {
    const int64_t value = to_int64_clipped(x.ptr());
    if (value < 0 || value > high)
      raise_value(std::string(where) + " must be in [0, " + std::to_string(high) + "], got " +
                  py::cast<std::string>(py::str(x)));
    return {nullptr, 0, false, value};
  }
  keep = load_cuda(x, where, &rewards, "rewards", kInts);
  if (keep.ndim != 1 || keep.shape[0] != envs)
    raise_value(std::string(where) + " must have shape (" + std::to_string(envs) + ",), got " +
                shape_text(keep.shape, keep.ndim));
  return numbers_of(keep);
}

py::object n_step_gather_binding(py::handle rewards_object, py::handle terminated_object, py::handle truncated_object,
                                 py::handle indices_object, py::handle cursor_object, py::handle size_object,
                                 py::handle gamma_object, py::handle n_object, py::handle next_values_object,
                                 py::handle cut_object, py::handle out) {
  const Array rewards = load_cuda(rewards_object, "n_step_gather: rewards", nullptr, "", kFloats);
  check_rewards(rewards);
  const Array terminated = load_ring(terminated_object, "n_step_gather: terminated", rewards, kFlags);
  Array truncated;  // none are for None: what is terminated may be truncated as well
  if (!truncated_object.is_none()) truncated = load_ring(truncated_object, "n_step_gather: truncated", rewards, kFlags);
  CudaNStepBatch batch{};
  NStepRing& ring = batch.ring;
  ring.slots = rewards.shape[0], ring.envs = rewards.ndim == 2 ? rewards.shape[1] : 1;
  ring.terminated.largest = ring.truncated.largest = ring.cut.largest = 255;
  set_column(ring.rewards, rewards);
  set_column(ring.terminated, terminated);
  set_column(ring.truncated, truncated.object ? truncated : terminated);
  batch.dtype = cuda_float(rewards.dtype);

  const Array indices = load_cuda(indices_object, "n_step_gather: indices", &rewards, "rewards", kInts);
  check_ndim_1(indices, "n_step_gather: indices");
  batch.indices = numbers_of(indices);
  batch.size = indices.shape[0];
  Array cursor, size;
  batch.cursor = load_per_env(cursor_object, "n_step_gather: cursor", rewards, ring.envs,
                              std::max<int64_t>(ring.slots - 1, 0), cursor);
  batch.sizes = load_per_env(size_object, "n_step_gather: size", rewards, ring.envs, ring.slots, size);

  ring.gamma = load_gamma(gamma_object);
  batch.n = load_n(n_object);
  ring.reach = discount_reach(ring.gamma, rewards.dtype == DType::f64, std::min(batch.n, ring.slots));

  Array next_values, cut;
  if (!next_values_object.is_none()) {
    next_values = load_ring(next_values_object, "n_step_gather: next_values", rewards, kFloats);
    set_column(ring.next_values, next_values);
  }
  if (!cut_object.is_none()) {
    cut = load_ring(cut_object, "n_step_gather: cut", rewards, kFlags);
    set_column(ring.cut, cut);
  }

  const DType dtypes[] = {rewards.dtype, rewards.dtype, DType::i64};
  char** const data[] = {&batch.returns, &batch.discounts, &batch.last};
  int64_t* const strides[] = {&batch.returns_stride, &batch.discounts_stride, &batch.last_stride};
  Array outs[3];
  Result results[3];
  if (!out.is_none()) {
    load_outs(out,
              {{"rewards", &rewards},
               {"terminated", &terminated},
               {"truncated", &truncated},
               {"indices", &indices},
               {"cursor", &cursor},
               {"size", &size},
               {"next_values", &next_values},
               {"cut", &cut}},
              batch.size, outs, [&](const py::object& object, const char* where, int i) {
                return load_cuda(object, where, &rewards, "rewards", {dtypes[i]});
              });
    for (int i = 0; i < 3; ++i) *data[i] = outs[i].data, *strides[i] = outs[i].strides[0];
  } else {
    for (int i = 0; i < 3; ++i) {
      results[i] = allocate_like(rewards, dtypes[i], &batch.size, 1);
      *data[i] = results[i].data;
      *strides[i] = dl_dtype_of(dtypes[i]).bits / 8;
    }
  }
  launch_on(rewards.api, rewards.device, "n_step_gather",
            [&](cudaStream_t stream) { return cuda_n_step_gather(batch, stream); });
  if (!out.is_none()) return py::reinterpret_borrow<py::object>(out);
  return py::make_tuple(std::move(results[0].object), std::move(results[1].object), std::move(results[2].object));
}

void bind(py::handle m) {
  def<&n_step_gather_binding>(
      m, "n_step_gather(rewards, terminated, truncated, indices, cursor, size, gamma, n, next_values, cut, out)");
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
