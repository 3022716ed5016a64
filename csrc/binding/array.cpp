#include "binding/array.h"

namespace fastrl {

void raise_type(const std::string& text) { throw py::type_error(text); }

void raise_value(const std::string& text) { throw py::value_error(text); }

std::string type_name(PyObject* object) { return py::cast<std::string>(py::type::handle_of(object).attr("__name__")); }

py::object import_module(const char* name) {
  PyObject* module = PyImport_ImportModule(name);
  if (!module) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(module);
}

std::string repr(double x) { return py::cast<std::string>(py::repr(py::float_(x))); }

std::string dtype_text(const Array& a) {
  std::string text = py::str(py::getattr(py::handle(a.object), "dtype", py::str(dtype_name(a.dtype))));
  return text.compare(0, 6, "torch.") == 0 ? text.substr(6) : text;
}

std::string device_text(const Array& a) {
  if (py::hasattr(py::handle(a.object), "device")) return py::str(py::handle(a.object).attr("device"));
  return "DLPack device " + std::to_string(a.device.device_type) + ":" + std::to_string(a.device.device_id);
}

}  // namespace fastrl
