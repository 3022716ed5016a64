// C++ functions as Python functions. pybind11 lends its objects only, by pybind11/cast.h: each file that included
// pybind11.h, for its functions and classes, would compile its error_already_set::what() and whatever that reaches,
// 3 s of CPU, and a call would find its arguments through vectors, 0.3 us.
#pragma once

#include <pybind11/cast.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace fastrl {

namespace py = pybind11;

// "name(a, b, c=None)": the parameters of a function, by position or by keyword; None is the only default.
class Signature {
 public:
  // `self`: of a method; the text that inspect.signature reads has it, the parameters have not.
  void set(const char* text, size_t count, bool self);
  const char* name() const { return name_.c_str(); }
  const char* doc() const { return doc_.c_str(); }

  // The arguments of a call, one a parameter: `args` itself, or `room` filled. Borrowed.
  PyObject* const* arguments(PyObject* const* args, Py_ssize_t n, PyObject* keywords, PyObject** room) const {
    if (!keywords && n == static_cast<Py_ssize_t>(names_.size())) return args;
    match(args, n, keywords, room);
    return room;
  }

  // An argument as a C++ value; what it cannot be is a TypeError.
  template <class T>
  T get(PyObject* const* arguments, size_t i) const {
    if constexpr (std::is_same<T, py::handle>::value) {
      return arguments[i];
    } else if constexpr (std::is_same<T, py::object>::value) {
      return py::reinterpret_borrow<py::object>(arguments[i]);
    } else {
      T value;
      read(arguments[i], i, value);
      return value;
    }
  }

 private:
  void match(PyObject* const* args, Py_ssize_t n, PyObject* keywords, PyObject** room) const;
  size_t position(PyObject* name) const;
  [[noreturn]] void raise_missing(size_t i) const;
  [[noreturn]] void raise_argument(size_t i, const char* wanted, PyObject* got) const;
  void read(PyObject* o, size_t i, bool& value) const;
  void read(PyObject* o, size_t i, int64_t& value) const;
  void read(PyObject* o, size_t i, int& value) const;
  void read(PyObject* o, size_t i, double& value) const;
  void read(PyObject* o, size_t i, std::string& value) const;
  void read(PyObject* o, size_t i, std::vector<int64_t>& value) const;
  void read(PyObject* o, size_t i, py::list& value) const;

  std::string name_, doc_;
  std::vector<PyObject*> names_;  // interned, and kept as long as the process
  size_t required_ = 0;
};

inline PyObject* to_python(py::object&& o) { return o.release().ptr(); }
inline PyObject* to_python(double x) { return PyFloat_FromDouble(x); }
inline PyObject* to_python(int64_t x) { return PyLong_FromLongLong(x); }
inline PyObject* to_python(int x) { return PyLong_FromLong(x); }
inline PyObject* to_python(bool x) { return PyBool_FromLong(x); }
inline PyObject* to_python(const char* x) { return PyUnicode_FromString(x); }

// The exception that is being handled, as Python's. Null.
PyObject* raise_current();

template <class F>
PyObject* guarded(const F& f) {
  try {
    if constexpr (std::is_void<decltype(f())>::value) {
      f();
      Py_RETURN_NONE;
    } else {
      return to_python(f());
    }
  } catch (...) {
    return raise_current();
  }
}

// The entry of a function in Python's calling convention.
template <auto f>
struct Entry;
template <class R, class... A, R (*f)(A...)>
struct Entry<f> {
  static constexpr size_t kCount = sizeof...(A);
  static inline Signature signature;
  static PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* keywords) {
    return guarded([&]() -> R {
      PyObject* room[kCount + 1];
      return apply(signature.arguments(args, n, keywords, room), std::index_sequence_for<A...>());
    });
  }

 private:
  template <size_t... i>
  static R apply([[maybe_unused]] PyObject* const* given, std::index_sequence<i...>) {
    return f(signature.get<std::decay_t<A>>(given, i)...);
  }
};

// PyCFunction_New of the entry; `def` must outlive the function.
void add_function(py::handle module, PyMethodDef& def, const Signature& signature);

using FastCall = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);

inline PyMethodDef method_def(const Signature& signature, FastCall call) {
  return {signature.name(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
          METH_FASTCALL | METH_KEYWORDS, signature.doc()};
}

// Adds f to the module under the name and the parameters of `text`.
template <auto f>
void def(py::handle module, const char* text) {
  static PyMethodDef method;
  Entry<f>::signature.set(text, Entry<f>::kCount, false);
  method = method_def(Entry<f>::signature, &Entry<f>::call);
  add_function(module, method, Entry<f>::signature);
}

}  // namespace fastrl
