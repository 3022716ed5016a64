#include <utility>

#include "binding/bind_cuda.h"
#include "n_step_gather/cuda.h"

namespace fastrl {
namespace {

const auto kFloats = {DType::f32, DType::f64, DType::f16, DType::bf16};
const auto kFlags = {DType::boolean, DType::u8};
const auto kInts = {DType::i64, DType::i32};

void set_column(RingColumn& column, const Array& a) {
  column.data = a.data;
  column.slot_stride = a.strides[0];
  column.env_stride = a.ndim == 2 ? a.strides[1] : 0;
}

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
  if (rewards.ndim != 1 && rewards.ndim != 2)
    raise_value("n_step_gather: rewards must have shape [C] or [C, N], got " + shape_text(rewards.shape, rewards.ndim));
  const Array terminated = load_ring(terminated_object, "n_step_gather: terminated", rewards, kFlags);
  const Array truncated = load_ring(truncated_object, "n_step_gather: truncated", rewards, kFlags);
  CudaNStepBatch batch{};
  NStepRing& ring = batch.ring;
  ring.slots = rewards.shape[0], ring.envs = rewards.ndim == 2 ? rewards.shape[1] : 1;
  ring.terminated.largest = ring.truncated.largest = ring.cut.largest = 255;
  set_column(ring.rewards, rewards);
  set_column(ring.terminated, terminated);
  set_column(ring.truncated, truncated);
  batch.dtype = cuda_float(rewards.dtype);

  const Array indices = load_cuda(indices_object, "n_step_gather: indices", &rewards, "rewards", kInts);
  check_ndim_1(indices, "n_step_gather: indices");
  batch.indices = numbers_of(indices);
  batch.size = indices.shape[0];
  Array cursor, size;
  batch.cursor = load_per_env(cursor_object, "n_step_gather: cursor", rewards, ring.envs,
                              std::max<int64_t>(ring.slots - 1, 0), cursor);
  batch.sizes = load_per_env(size_object, "n_step_gather: size", rewards, ring.envs, ring.slots, size);

  if (!is_real(gamma_object.ptr()))
    raise_type("n_step_gather: gamma must be a float, got " + type_name(gamma_object.ptr()));
  ring.gamma = to_double(gamma_object.ptr());
  if (!(ring.gamma >= 0 && ring.gamma <= 1))
    raise_value("n_step_gather: gamma must be in [0, 1], got " + repr(ring.gamma));
  if (!is_int(n_object.ptr())) raise_type("n_step_gather: n must be an int, got " + type_name(n_object.ptr()));
  batch.n = to_int64_clipped(n_object.ptr());
  if (batch.n < 1) raise_value("n_step_gather: n must be >= 1, got " + py::cast<std::string>(py::str(n_object)));

  Array next_values, cut;
  if (!next_values_object.is_none()) {
    next_values = load_ring(next_values_object, "n_step_gather: next_values", rewards, kFloats);
    set_column(ring.next_values, next_values);
  }
  if (!cut_object.is_none()) {
    cut = load_ring(cut_object, "n_step_gather: cut", rewards, kFlags);
    set_column(ring.cut, cut);
  }

  static const char* const names[] = {"n_step_gather: out[0]", "n_step_gather: out[1]", "n_step_gather: out[2]"};
  const DType dtypes[] = {rewards.dtype, rewards.dtype, DType::i64};
  char** const data[] = {&batch.returns, &batch.discounts, &batch.last};
  int64_t* const strides[] = {&batch.returns_stride, &batch.discounts_stride, &batch.last_stride};
  Array outs[3];
  Result results[3];
  if (!out.is_none()) {
    const bool many = PyList_Check(out.ptr()) || PyTuple_Check(out.ptr());
    if (!many || py::len(out) != 3)
      raise_value("n_step_gather: out must be 3 arrays, got " +
                  (many ? std::to_string(py::len(out)) + " arrays" : type_name(out.ptr())));
    const std::pair<const char*, const Array*> inputs[] = {{"rewards", &rewards},         {"terminated", &terminated},
                                                           {"truncated", &truncated},     {"indices", &indices},
                                                           {"cursor", &cursor},           {"size", &size},
                                                           {"next_values", &next_values}, {"cut", &cut}};
    for (int i = 0; i < 3; ++i) {
      const std::string where = names[i];
      outs[i] = load_cuda(py::object(out[py::int_(i)]), names[i], &rewards, "rewards", {dtypes[i]});
      Array& target = outs[i];
      if (target.ndim != 1 || target.shape[0] != batch.size)
        raise_value(where + " must have shape (" + std::to_string(batch.size) + ",), got " +
                    shape_text(target.shape, target.ndim));
      if (target.overlaps_itself()) raise_value(where + " must not overlap itself");
      for (const auto& [name, input] : inputs)
        if (input->object && target.may_overlap(*input)) raise_value(where + " must not share memory with " + name);
      for (int j = 0; j < i; ++j)
        if (target.may_overlap(outs[j]))
          raise_value(where + " must not share memory with out[" + std::to_string(j) + "]");
      *data[i] = target.data;
      *strides[i] = target.strides[0];
    }
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

void bind(py::module_& m) {
  m.def("n_step_gather", &n_step_gather_binding, py::arg("rewards"), py::arg("terminated"), py::arg("truncated"),
        py::arg("indices"), py::arg("cursor"), py::arg("size"), py::arg("gamma"), py::arg("n"), py::arg("next_values"),
        py::arg("cut"), py::arg("out"));
}

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
