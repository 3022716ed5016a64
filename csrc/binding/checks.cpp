#include "binding/checks.h"

#include <algorithm>
#include <string>

namespace fastrl {

void raise_not_on_cpu(const Array& a, const char* where) {
  raise_value(std::string(where) + " must be on cpu, got " + device_text(a));
}

void raise_dtype(const Array& a, const char* where, std::initializer_list<DType> allowed) {
  std::string text = std::string(where) + " must have dtype ";
  for (const DType* t = allowed.begin(); t != allowed.end(); ++t)
    text += std::string(t == allowed.begin() ? "" : " or ") + dtype_name(*t);
  raise_value(text + ", got " + dtype_text(a));
}

Array load_cpu(PyObject* object, const char* where, std::initializer_list<DType> allowed) {
  Array a = load(object, where);
  check_cpu(a, where);
  check_has_data(a, where);
  check_dtype(a, where, allowed);
  return a;
}

void check_ndim_1(const Array& a, const char* where) {
  if (a.ndim != 1) raise_value(std::string(where) + " must have shape [B], got " + shape_text(a.shape, a.ndim));
}

void raise_shape(const Array& a, const char* where, const Array& like, const char* like_name) {
  raise_value(std::string(where) + " must have shape " + shape_text(like.shape, like.ndim) + " like " + like_name +
              ", got " + shape_text(a.shape, a.ndim));
}

void check_kind_like(const Array& a, const char* where, const Array& like, const char* like_name) {
  if (a.kind == like.kind && a.api == like.api &&
      (a.kind != Kind::capsule || Py_TYPE(a.object) == Py_TYPE(like.object)))
    return;
  const auto text = [](const Array& x) -> std::string {
    if (x.kind == Kind::numpy) return "numpy.ndarray";
    const auto module = py::cast<std::string>(py::type::handle_of(x.object).attr("__module__"));
    return module.compare(0, 5, "torch") == 0 ? "torch.Tensor" : type_name(x.object);
  };
  const std::string kind = text(a), wanted = text(like);
  if (kind != wanted)  // two types of one framework's arrays are one kind
    raise_type(std::string(where) + " must be a " + wanted + " like " + like_name + ", got a " + kind);
}

void check_dtype_like(const Array& a, const char* where, const Array& like, const char* like_name) {
  if (a.dtype != like.dtype)
    raise_value(std::string(where) + " must have dtype " + dtype_name(like.dtype) + " like " + like_name + ", got " +
                dtype_text(a));
}

}  // namespace fastrl
