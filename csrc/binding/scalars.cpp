#include "binding/scalars.h"

#include <limits>

#include "binding/load.h"
#include "binding/numpy.h"

namespace fastrl {

// Of the abstract class numbers.<name>: takes NumPy's scalars in, and leaves arrays, bool and str out.
static bool is_number(PyObject* o, const char* name) {
  // Arrays first: asking the abstract class costs 0.8 us.
  if (PyBool_Check(o) || is_numpy(o) || exchange_api(Py_TYPE(o))) return false;
  return py::isinstance(o, import_module("numbers").attr(name));
}

bool is_int(PyObject* o) { return PyLong_CheckExact(o) || is_number(o, "Integral"); }

bool is_real(PyObject* o) { return PyFloat_CheckExact(o) || PyLong_CheckExact(o) || is_number(o, "Real"); }

py::object scalar_of(py::handle o) {
  const auto type = reinterpret_cast<PyObject*>(Py_TYPE(o.ptr()));
  if (!PyFloat_CheckExact(o.ptr()) && !PyLong_CheckExact(o.ptr()) && !PyUnicode_Check(o.ptr()) &&
      (is_numpy(o.ptr()) || PyObject_HasAttrString(type, "__dlpack__")) && py::hasattr(o, "ndim") &&
      py::cast<int>(o.attr("ndim")) == 0 && !(py::hasattr(o, "is_cuda") && py::cast<bool>(o.attr("is_cuda"))))
    return o.attr("item")();
  return py::reinterpret_borrow<py::object>(o);
}

double to_double(PyObject* o) {
  const double x = PyFloat_AsDouble(o);
  if (x == -1.0 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_OverflowError)) throw py::error_already_set();
    PyErr_Clear();
    return std::numeric_limits<double>::infinity();
  }
  return x;
}

int64_t to_int64_clipped(PyObject* o) {
  const Py_ssize_t n = PyNumber_AsSsize_t(o, nullptr);
  if (n == -1 && PyErr_Occurred()) throw py::error_already_set();
  return n;
}

}  // namespace fastrl
