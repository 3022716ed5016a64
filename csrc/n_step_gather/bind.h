// What the bindings of n_step_gather for either memory share.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>

#include "binding/bind.h"
#include "core/discount.h"
#include "n_step_gather/n_step_gather.h"

namespace fastrl {

inline void set_column(RingColumn& column, const Array& a) {
  column.data = a.data, column.slot_stride = a.strides[0], column.env_stride = a.ndim == 2 ? a.strides[1] : 0;
}

inline void check_rewards(const Array& rewards) {
  if (rewards.ndim != 1 && rewards.ndim != 2)
    raise_value("n_step_gather: rewards must have shape [C] or [C, N], got " + shape_text(rewards.shape, rewards.ndim));
}

inline double load_gamma(py::handle object) {
  const py::object x = scalar_of(object);
  if (!is_real(x.ptr())) raise_type("n_step_gather: gamma must be a float, got " + type_name(x.ptr()));
  const double gamma = to_double(x.ptr());
  if (!(gamma >= 0 && gamma <= 1)) raise_value("n_step_gather: gamma must be in [0, 1], got " + repr(gamma));
  return gamma;
}

inline int64_t load_n(py::handle object) {
  const py::object x = scalar_of(object);
  if (!is_int(x.ptr())) raise_type("n_step_gather: n must be an int, got " + type_name(x.ptr()));
  const int64_t n = to_int64_clipped(x.ptr());
  if (n < 1) raise_value("n_step_gather: n must be >= 1, got " + py::cast<std::string>(py::str(x)));
  return n;
}

// The arrays of `out`, which share no memory with each other or with `inputs`. `load(object, where, i)` is what differs
// between the memories, up to the dtype.
template <class Load>
void load_outs(py::handle out, std::initializer_list<std::pair<const char*, const Array*>> inputs, int64_t batch,
               Array (&outs)[3], Load load) {
  static const char* const names[] = {"n_step_gather: out[0]", "n_step_gather: out[1]", "n_step_gather: out[2]"};
  const bool many = PyList_Check(out.ptr()) || PyTuple_Check(out.ptr());
  if (!many || py::len(out) != 3)
    raise_value("n_step_gather: out must be 3 arrays, got " +
                (many ? std::to_string(py::len(out)) + " arrays" : type_name(out.ptr())));
  for (int i = 0; i < 3; ++i) {
    const std::string where = names[i];
    Array& target = outs[i] = load(py::object(out[py::int_(i)]), names[i], i);
    if (target.ndim != 1 || target.shape[0] != batch)
      raise_value(where + " must have shape (" + std::to_string(batch) + ",), got " +
                  shape_text(target.shape, target.ndim));
    if (!target.writable) raise_value(where + " must be writable");
    if (target.overlaps_itself()) raise_value(where + " must not overlap itself");
    for (const auto& [name, input] : inputs)
      if (input->object && target.may_overlap(*input)) raise_value(where + " must not share memory with " + name);
    for (int j = 0; j < i; ++j)
      if (target.may_overlap(outs[j]))
        raise_value(where + " must not share memory with out[" + std::to_string(j) + "]");
  }
}

}  // namespace fastrl
