#include "binding/load.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "binding/numpy.h"
#include "binding/registry.h"

namespace fastrl {

PyTypeObject* numpy_array_type = nullptr;

static const Binding numpy_binding([](py::handle) {
  numpy_array_type = reinterpret_cast<PyTypeObject*>(py::detail::npy_api::get().PyArray_Type_);
});

const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
  struct Entry {
    PyTypeObject* type;
    const DLPackExchangeAPI* api;
  };
  static Entry cache[4] = {};
  static unsigned next = 0;
  for (const Entry& e : cache)
    if (e.type == type) return e.api;
  PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  const DLPackExchangeAPI* api = nullptr;
  if (capsule) {
    auto* header = static_cast<DLPackExchangeAPIHeader*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
    while (header && header->version.major != 1) header = header->prev_api;
    api = reinterpret_cast<const DLPackExchangeAPI*>(header);
    if (api && !api->dltensor_from_py_object_no_sync) api = nullptr;
  }
  PyErr_Clear();
  Entry& e = cache[next++ % 4];
  PyTypeObject* old = e.type;
  Py_INCREF(type);
  e = {type, api};
  Py_XDECREF(old);  // last: it may run any code
  return api;
}

void raise_no_data(PyObject* object, const char* where) {
  PyErr_Clear();
  const auto functorch = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("torch._C._functorch").ptr()));
  PyErr_Clear();
  bool wrapped = false;
  try {
    wrapped = functorch && py::hasattr(functorch, "is_functorch_wrapped_tensor") &&
              py::cast<bool>(functorch.attr("is_functorch_wrapped_tensor")(py::handle(object)));
  } catch (py::error_already_set&) {
    // another library's array
  }
  if (wrapped)
    throw std::runtime_error(
        std::string(where) +
        " is inside a transform of torch.func (vmap, grad, jvp, ...), which the kernels do not "
        "support: call them outside it, on the whole batch, with torch.autograd.grad for gradients");
  raise_value(std::string(where) + " has no data (a fake, meta or sparse tensor?)");
}

namespace {

// What no array can have: a producer's fault, but one that must not crash us.
void check_dltensor(const DLTensor& t, int64_t itemsize, const char* where) {
  const auto refuse = [&](const std::string& what) {
    raise_value(std::string(where) + " is no sound DLPack tensor: " + what);
  };
  const int bits = t.dtype.bits * t.dtype.lanes;
  if (bits == 0 || bits % 8) refuse("its elements have " + std::to_string(bits) + " bits");
  if (t.ndim < 0 || (t.ndim > 0 && !t.shape)) refuse(t.ndim < 0 ? "ndim is " + std::to_string(t.ndim) : "no shape");
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  int64_t size = itemsize, reach = 0;
  bool empty = false;
  for (int d = 0; d < t.ndim; ++d) {
    if (t.shape[d] < 0) refuse("shape[" + std::to_string(d) + "] is " + std::to_string(t.shape[d]));
    empty = empty || t.shape[d] == 0;
  }
  for (int d = 0; d < t.ndim && !empty; ++d) {
    if (t.shape[d] > kMost / size) refuse("it has more bytes than there are addresses");
    size *= t.shape[d];
    if (!t.strides || t.shape[d] == 1) continue;
    const int64_t step = t.strides[d] < 0 ? -(t.strides[d] + 1) : t.strides[d];  // the lowest number has no negative
    const int64_t steps = (t.shape[d] - 1) * itemsize;
    if (step >= (kMost - reach) / steps) refuse("its strides reach beyond all addresses");
    reach += (step + 1) * steps;
  }
  if (t.byte_offset > static_cast<uint64_t>(kMost - std::max(size, reach)))
    refuse("its byte_offset is beyond all addresses");
}

void fill_from_dltensor(Array& a, const DLTensor& t, const char* where) {
  a.device = t.device;
  a.ndim = t.ndim;
  a.dl_dtype = t.dtype;
  a.dtype = dtype_of(t.dtype);
  a.itemsize = t.dtype.bits * t.dtype.lanes / 8;
  if (t.ndim > kMaxDims)
    raise_value(std::string(where) + " must have at most " + std::to_string(kMaxDims) + " dimensions, got " +
                std::to_string(t.ndim));
  check_dltensor(t, a.itemsize, where);
  uint64_t expected = a.itemsize;
  for (int d = t.ndim - 1; d >= 0; --d) {
    a.shape[d] = t.shape[d];
    // Unsigned: strides of empty arrays and of single rows mean nothing, and may be anything.
    a.strides[d] = static_cast<int64_t>(t.strides ? static_cast<uint64_t>(t.strides[d]) * a.itemsize : expected);
    expected *= static_cast<uint64_t>(t.shape[d]);
  }
  a.data = static_cast<char*>(t.data);
  if (a.data) a.data += t.byte_offset;
}

void load_numpy(Array& a, PyObject* object, const char* where) {
  const NumpyArray* array = numpy_array(object);
  a.kind = Kind::numpy;
  a.data = array->data;
  a.ndim = array->nd;
  if (array->nd > kMaxDims)
    raise_value(std::string(where) + " must have at most " + std::to_string(kMaxDims) + " dimensions, got " +
                std::to_string(array->nd));
  for (int d = 0; d < array->nd; ++d) {
    a.shape[d] = array->dimensions[d];
    a.strides[d] = array->strides[d];
  }
  a.dtype = dtype_of_numpy(array->descr->type_num);
  a.writable = array->is_writable();
  switch (a.dtype) {
    case DType::f64:
    case DType::i64:
    case DType::u64:
      a.itemsize = 8;
      break;
    case DType::f32:
    case DType::i32:
    case DType::u32:
      a.itemsize = 4;
      break;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
    case DType::u16:
      a.itemsize = 2;
      break;
    case DType::i8:
    case DType::u8:
    case DType::boolean:
      a.itemsize = 1;
      break;
    case DType::other: {
      const py::dtype dt = py::reinterpret_borrow<py::dtype>(reinterpret_cast<PyObject*>(array->descr));
      a.itemsize = dt.itemsize();
      a.has_objects = py::cast<bool>(dt.attr("hasobject"));
    }
  }
  a.aligned = array->is_aligned();
  // Numbers of a foreign byte order cannot be read; rows of them can still be copied.
  if (!array->descr->is_native()) a.dtype = DType::other;
}

// NumPy's masked arrays are arrays too, but nothing here looks at their masks.
void check_not_masked(PyObject* object, const char* where) {
  const auto ma = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("numpy.ma").ptr()));
  PyErr_Clear();
  if (ma && py::hasattr(ma, "MaskedArray") && py::isinstance(py::handle(object), ma.attr("MaskedArray")))
    raise_type(std::string(where) + " must not be a masked array, whose mask would be ignored: give filled(value)");
}

// torch keeps -x and conj(x) of some views as a mark on the tensor that DLPack's C functions do not see.
void check_not_lazy(PyObject* object, bool is_complex, const char* where) {
  static PyObject* const names[] = {PyUnicode_InternFromString("is_neg"), PyUnicode_InternFromString("is_conj")};
  for (int i = 0; i < (is_complex ? 2 : 1); ++i) {
    PyObject* marked = PyObject_CallMethodNoArgs(object, names[i]);
    if (!marked) PyErr_Clear();  // another framework's tensor: it has no such mark
    Py_XDECREF(marked);
    if (marked == Py_True)
      raise_value(std::string(where) +
                  " must not be a lazily negated or conjugated view: call resolve_neg() / resolve_conj()");
  }
}

[[noreturn]] void raise_unreadable(PyObject* object, const char* where) {
  const std::string kind = type_name(object), tracer = "Tracer";
  const bool traced = kind.size() > tracer.size() && kind.substr(kind.size() - tracer.size()) == tracer;
  raise_value(std::string(where) + " could not be read through DLPack (" + kind + ")" +
              (traced ? ": inside jax.jit and the like use fastrl.jax" : ""));
}

void load_capsule(Array& a, PyObject* object, const char* where) {
  a.kind = Kind::capsule;
  py::object producer = py::reinterpret_borrow<py::object>(object);
  try {
    const auto device = py::cast<std::pair<int, int>>(producer.attr("__dlpack_device__")());
    if (device.first != kDLCPU) {
      a.device = {device.first, device.second};
      return;  // the caller's device check names it; nothing is exported
    }
    // Detached, so that a tensor that wants a gradient exports too.
    py::object capsule;
    if (py::hasattr(producer, "is_neg")) check_not_lazy(object, py::cast<bool>(producer.attr("is_complex")()), where);
    py::object source = py::hasattr(producer, "detach") ? producer.attr("detach")() : producer;
    try {
      capsule = source.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 3));
    } catch (py::error_already_set& e) {
      if (!e.matches(PyExc_TypeError)) throw;
      capsule = source.attr("__dlpack__")();  // a producer from before DLPack 1.0
    }
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
      auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
      if (managed->version.major != 1) raise_value(std::string(where) + " speaks an unknown version of DLPack");
      fill_from_dltensor(a, managed->dl_tensor, where);
      a.writable = !(managed->flags & kDLReadOnly);
    } else {
      auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
      if (!managed) throw py::error_already_set();
      fill_from_dltensor(a, managed->dl_tensor, where);
      // Before DLPack 1.0 nobody could say that it must not be written, as JAX's arrays; torch's tensors may be.
      a.writable = py::hasattr(producer, "is_neg");
    }
    a.own(std::move(capsule));  // not consumed, only kept: its own destructor frees it
  } catch (py::error_already_set& e) {
    if (!e.matches(PyExc_Exception)) throw;  // KeyboardInterrupt and the like
    raise_unreadable(object, where);
  } catch (py::cast_error&) {
    raise_unreadable(object, where);
  }
}

}  // namespace

Array load(PyObject* object, const char* where) {
  Array a;
  a.object = object;
  if (is_numpy(object)) {
    if (!is_plain_numpy(object)) check_not_masked(object, where);
    load_numpy(a, object, where);
    return a;
  }
  if (const DLPackExchangeAPI* api = exchange_api(Py_TYPE(object))) {
    a.kind = Kind::exchange;
    a.api = api;
    DLTensor t;
    if (api->dltensor_from_py_object_no_sync(object, &t) != 0) raise_no_data(object, where);
    fill_from_dltensor(a, t, where);
    check_not_lazy(object, t.dtype.code == kDLComplex, where);
  } else if (PyObject_HasAttrString(reinterpret_cast<PyObject*>(Py_TYPE(object)), "__dlpack__")) {
    load_capsule(a, object, where);
  } else {
    raise_type(std::string(where) + " must be an array, got " + type_name(object));
  }
  return a;
}

}  // namespace fastrl
