#include "random/bind.h"

#include "random/normals.h"

namespace fastrl {
namespace {

// n float64 numbers of a generator, for the ops of torch.compile, which draw apart from what they compute.
py::object draw(py::handle state_object, int64_t n, bool normal) {
  uint64_t* state = load_state(state_object);
  Array numpy;
  Result out = allocate_like(numpy, DType::f64, &n, 1);
  (normal ? fill_normal : fill_uniform)(state[0], take(state, normal ? normal_blocks(n) : n), n, data_of<double>(out));
  return std::move(out.object);
}

void bind(py::handle m) { def<&draw>(m, "draw(state, n, normal)"); }

const Binding binding(&bind);

}  // namespace
}  // namespace fastrl
