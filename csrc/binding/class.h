// C++ classes as Python classes: a constructor, methods and properties that are read.
#pragma once

#include <cstddef>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "binding/array.h"
#include "binding/function.h"

namespace fastrl {

// The memory of an object, which Python fills with zeros.
struct InstanceHead {
  PyObject_HEAD PyObject* weak_references;
  bool made;  // by __init__
};
template <class C>
struct Instance : InstanceHead {
  alignas(C) unsigned char room[sizeof(C)];

  C& object() { return *std::launder(reinterpret_cast<C*>(room)); }
};

// The object of a method. __new__ alone makes none.
template <class C>
C& self_of(PyObject* self) {
  auto* instance = reinterpret_cast<Instance<C>*>(self);
  if (!instance->made) raise_type(type_name(self) + ".__init__ must be called first");
  return instance->object();
}

py::object new_type(const std::string& name, int size, const Signature& signature, destructor dealloc, initproc init);
void add_method(py::handle type, PyMethodDef& def);
void add_property(py::handle type, PyGetSetDef& def);

// The arguments of __init__ as those of other calls come.
class Unpacked {
 public:
  Unpacked(PyObject* args, PyObject* keywords);
  PyObject* const* values() const { return values_.data(); }
  Py_ssize_t n() const { return n_; }
  PyObject* names() const { return names_.ptr(); }

 private:
  std::vector<PyObject*> values_;
  Py_ssize_t n_;
  py::object names_;
};

// The entry of a method, and of a property.
template <auto f, class C, class R, class... A>
struct MethodEntry {
  static constexpr size_t kCount = sizeof...(A);
  static inline Signature signature;
  static PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* keywords) {
    return guarded([&]() -> R {
      PyObject* room[kCount + 1];
      PyObject* const* given = signature.arguments(args, n, keywords, room);
      return apply(self_of<C>(self), given, std::index_sequence_for<A...>());
    });
  }
  static PyObject* get(PyObject* self, void*) {
    return guarded([&]() -> R { return (self_of<C>(self).*f)(); });
  }

 private:
  template <size_t... i>
  static R apply(C& object, [[maybe_unused]] PyObject* const* given, std::index_sequence<i...>) {
    return (object.*f)(signature.get<std::decay_t<A>>(given, i)...);
  }
};
template <class R, class C, class... A, R (C::*f)(A...)>
struct Entry<f> : MethodEntry<f, C, R, A...> {};
template <class R, class C, class... A, R (C::*f)(A...) const>
struct Entry<f> : MethodEntry<f, C, R, A...> {};

template <class C, class... A>
struct Constructor {
  static inline Signature signature;
  static inline std::string name;  // of the class, which Python 3.10 does not copy

  static int init(PyObject* self, PyObject* args, PyObject* keywords) {
    PyObject* done = guarded([&] {
      auto* instance = reinterpret_cast<Instance<C>*>(self);
      if (instance->made) raise_type(name + ".__init__ was called already");
      const Unpacked given(args, keywords);
      PyObject* room[sizeof...(A) + 1];
      make(instance->room, signature.arguments(given.values(), given.n(), given.names(), room),
           std::index_sequence_for<A...>());
      instance->made = true;
    });
    Py_XDECREF(done);
    return done ? 0 : -1;
  }

  static void dealloc(PyObject* self) {
    auto* instance = reinterpret_cast<Instance<C>*>(self);
    PyTypeObject* type = Py_TYPE(self);
    if (instance->weak_references) PyObject_ClearWeakRefs(self);
    if (instance->made) instance->object().~C();
    type->tp_free(self);
    Py_DECREF(type);
  }

 private:
  template <size_t... i>
  static void make(void* room, PyObject* const* given, std::index_sequence<i...>) {
    new (room) C(signature.template get<std::decay_t<A>>(given, i)...);
  }
};

// A class of the module under the name of `text`, "Name(parameters)"; A are the parameters of its constructor.
template <class C, class... A>
class Class {
 public:
  Class(py::handle module, const char* text) {
    static_assert(alignof(C) <= alignof(std::max_align_t), "Python aligns objects no further");
    using Made = Constructor<C, A...>;
    Made::signature.set(text, sizeof...(A), false);
    Made::name = py::cast<std::string>(module.attr("__name__")) + "." + Made::signature.name();
    type_ = new_type(Made::name, sizeof(Instance<C>), Made::signature, &Made::dealloc, &Made::init);
    module.attr(Made::signature.name()) = type_;
  }

  template <auto f>
  Class& method(const char* text) {
    static PyMethodDef method;
    Entry<f>::signature.set(text, Entry<f>::kCount, true);
    method = method_def(Entry<f>::signature, &Entry<f>::call);
    add_method(type_, method);
    return *this;
  }

  template <auto f>
  Class& property(const char* name) {
    static PyGetSetDef property;
    property = {name, &Entry<f>::get, nullptr, nullptr, nullptr};
    add_property(type_, property);
    return *this;
  }

 private:
  py::object type_;
};

}  // namespace fastrl
