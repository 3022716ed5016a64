#include "binding/function.h"

#include <cstring>
#include <new>
#include <stdexcept>

#include "binding/array.h"
#include "binding/class.h"
#include "core/parallel.h"

#include <structmember.h>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace fastrl {

// ---------------------------------------------------------------- parameters
void Signature::set(const char* text, size_t count, bool self) {
  const std::string all = text;
  const size_t open = all.find('(');
  name_ = all.substr(0, open);
  doc_ = name_ + (self ? count > 0 ? "($self, " : "($self" : "(") + all.substr(open + 1) + "\n--\n\n";
  names_.clear(), required_ = 0;
  for (size_t begin = open + 1; all[begin] != ')';) {
    const size_t end = all.find_first_of(",)", begin), equals = all.find('=', begin);
    if (equals > end) required_ = names_.size() + 1;
    names_.push_back(PyUnicode_InternFromString(all.substr(begin, std::min(equals, end) - begin).c_str()));
    begin = all[end] == ',' ? end + 2 : end;
  }
  if (names_.size() != count) throw std::logic_error(all + " does not name its parameters");
}

size_t Signature::position(PyObject* name) const {
  for (size_t i = 0; i < names_.size(); ++i)
    if (names_[i] == name) return i;  // as a rule: both are interned
  for (size_t i = 0; i < names_.size(); ++i) {
    const int same = PyObject_RichCompareBool(names_[i], name, Py_EQ);
    if (same < 0) throw py::error_already_set();
    if (same) return i;
  }
  return names_.size();
}

void Signature::match(PyObject* const* args, Py_ssize_t n, PyObject* keywords, PyObject** room) const {
  const size_t count = names_.size(), given = static_cast<size_t>(n);
  if (given > count)
    raise_type(name_ + "() takes at most " + std::to_string(count) + " arguments, got " + std::to_string(given));
  for (size_t i = 0; i < count; ++i) room[i] = i < given ? args[i] : nullptr;
  const Py_ssize_t named = keywords ? PyTuple_GET_SIZE(keywords) : 0;
  for (Py_ssize_t k = 0; k < named; ++k) {
    PyObject* name = PyTuple_GET_ITEM(keywords, k);
    const size_t i = position(name);
    if (i == count)
      raise_type(name_ + "() got an unexpected keyword argument " + py::cast<std::string>(py::repr(name)));
    if (room[i]) raise_type(name_ + "() got multiple values for argument " + py::cast<std::string>(py::repr(name)));
    room[i] = args[n + k];
  }
  for (size_t i = 0; i < count; ++i) {
    if (room[i]) continue;
    if (i < required_) raise_missing(i);
    room[i] = Py_None;
  }
}

void Signature::raise_missing(size_t i) const {
  raise_type(name_ + "() missing required argument " + py::cast<std::string>(py::repr(names_[i])));
}

void Signature::raise_argument(size_t i, const char* wanted, PyObject* got) const {
  PyErr_Clear();
  raise_type(name_ + "(): " + py::cast<std::string>(py::str(names_[i])) + " must be " + wanted + ", got " +
             type_name(got));
}

// ---------------------------------------------------------------- values
void Signature::read(PyObject* o, size_t i, bool& value) const {
  const PyNumberMethods* number = Py_TYPE(o)->tp_as_number;
  if (o != Py_True && o != Py_False && o != Py_None && !(number && number->nb_bool)) raise_argument(i, "a bool", o);
  const int truth = PyObject_IsTrue(o);
  if (truth < 0) throw py::error_already_set();
  value = truth == 1;
}

void Signature::read(PyObject* o, size_t i, int64_t& value) const {
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(o));
  value = number ? PyLong_AsLongLong(number.ptr()) : -1;
  if (value == -1 && PyErr_Occurred()) raise_argument(i, "an int of 64 bits", o);
}

void Signature::read(PyObject* o, size_t i, int& value) const {
  int64_t wide = 0;
  read(o, i, wide);
  value = static_cast<int>(wide);
  if (value != wide) raise_argument(i, "an int of 32 bits", o);
}

void Signature::read(PyObject* o, size_t i, double& value) const {
  value = PyFloat_AsDouble(o);
  if (value == -1 && PyErr_Occurred()) raise_argument(i, "a float", o);
}

void Signature::read(PyObject* o, size_t i, std::string& value) const {
  Py_ssize_t size = 0;
  const char* text = PyUnicode_Check(o) ? PyUnicode_AsUTF8AndSize(o, &size) : nullptr;
  if (!text) raise_argument(i, "a str", o);
  value.assign(text, static_cast<size_t>(size));
}

void Signature::read(PyObject* o, size_t i, std::vector<int64_t>& value) const {
  if (!PyList_Check(o) && !PyTuple_Check(o)) raise_argument(i, "a list of ints", o);
  for (py::handle item : py::reinterpret_borrow<py::object>(o)) {
    int64_t number = 0;
    read(item.ptr(), i, number);
    value.push_back(number);
  }
}

void Signature::read(PyObject* o, size_t i, py::list& value) const {
  if (!PyList_Check(o)) raise_argument(i, "a list", o);
  value = py::reinterpret_borrow<py::list>(o);
}

// ---------------------------------------------------------------- calls
PyObject* raise_current() {
  try {
    throw;
#if defined(__GLIBCXX__) && defined(__GLIBC__)
  } catch (abi::__forced_unwind&) {  // Python ends this thread
    throw;
#endif
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const py::builtin_exception& e) {
    e.set_error();
  } catch (const Interrupted&) {  // the handler's exception is set already
  } catch (const std::bad_alloc&) {
    PyErr_SetString(PyExc_MemoryError, "fastrl: no memory for the work space of a call");
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
  return nullptr;
}

static py::object check(PyObject* made) {
  if (!made) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

void add_function(py::handle module, PyMethodDef& def, const Signature& signature) {
  const py::object function = check(PyCFunction_NewEx(&def, nullptr, module.attr("__name__").ptr()));
  module.attr(signature.name()) = function;
}

// ---------------------------------------------------------------- classes
py::object new_type(const std::string& name, int size, const Signature& signature, destructor dealloc, initproc init) {
  static PyMemberDef members[] = {
      {"__weaklistoffset__", T_PYSSIZET, offsetof(InstanceHead, weak_references), READONLY, nullptr},
      {nullptr, 0, 0, 0, nullptr}};
  PyType_Slot slots[] = {
      {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},        {Py_tp_init, reinterpret_cast<void*>(init)},
      {Py_tp_new, reinterpret_cast<void*>(&PyType_GenericNew)}, {Py_tp_members, members},
      {Py_tp_doc, const_cast<char*>(signature.doc())},          {0, nullptr}};
  PyType_Spec spec{name.c_str(), size, 0, Py_TPFLAGS_DEFAULT, slots};
  return check(PyType_FromSpec(&spec));
}

void add_method(py::handle type, PyMethodDef& def) {
  type.attr(def.ml_name) = check(PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type.ptr()), &def));
}

void add_property(py::handle type, PyGetSetDef& def) {
  type.attr(def.name) = check(PyDescr_NewGetSet(reinterpret_cast<PyTypeObject*>(type.ptr()), &def));
}

Unpacked::Unpacked(PyObject* args, PyObject* keywords) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); ++i) values_.push_back(PyTuple_GET_ITEM(args, i));
  n_ = static_cast<Py_ssize_t>(values_.size());
  if (!keywords) return;
  names_ = check(PyTuple_New(PyDict_GET_SIZE(keywords)));
  PyObject *name = nullptr, *value = nullptr;
  Py_ssize_t at = 0;
  for (Py_ssize_t i = 0; PyDict_Next(keywords, &at, &name, &value); ++i) {
    Py_INCREF(name);
    PyTuple_SET_ITEM(names_.ptr(), i, name);
    values_.push_back(value);
  }
}

}  // namespace fastrl
