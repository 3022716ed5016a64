// The loader: a NumPy array, a torch tensor or any DLPack producer becomes {pointer, dtype, shape, strides, device},
// with every check that does not need the data; and results are allocated in the caller's framework. No framework's
// header.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "dlpack.h"

namespace fastrl {

namespace py = pybind11;

enum class DType : uint8_t { f32, f64, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean, other };

inline const char* dtype_name(DType t) {
  static const char* const names[] = {"float32", "float64", "float16", "bfloat16", "int64", "int32", "int16",
                                      "int8",    "uint64",  "uint32",  "uint16",   "uint8", "bool",  "other"};
  return names[static_cast<int>(t)];
}

constexpr int kMaxDims = 16;

// The kind of array that the caller passed, and so wants back.
enum class Kind : uint8_t { numpy, exchange, capsule };

class Array {
 public:
  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  Array(Array&& other) noexcept { *this = std::move(other); }
  Array& operator=(Array&& other) noexcept {
    std::swap(owner_, other.owner_);
    object = other.object, api = other.api, data = other.data, device = other.device, dl_dtype = other.dl_dtype;
    itemsize = other.itemsize;
    shape = other.shape, strides = other.strides, ndim = other.ndim, dtype = other.dtype, kind = other.kind;
    writable = other.writable, aligned = other.aligned, has_objects = other.has_objects;
    return *this;
  }

  PyObject* object = nullptr;  // borrowed: the caller's argument outlives the call
  const DLPackExchangeAPI* api = nullptr;
  char* data = nullptr;
  DLDevice device{kDLCPU, 0};
  DLDataType dl_dtype{};  // as the framework gave it; unset for NumPy
  int64_t itemsize = 0;
  std::array<int64_t, kMaxDims> shape, strides;  // strides in bytes
  int ndim = 0;
  DType dtype = DType::other;
  Kind kind = Kind::numpy;
  bool writable = true;
  bool aligned = true;
  bool has_objects = false;

  bool is_contiguous() const {
    if (size() == 0) return true;
    int64_t expected = itemsize;
    for (int d = ndim - 1; d >= 0; --d) {
      if (shape[d] != 1 && strides[d] != expected) return false;
      expected *= shape[d];
    }
    return true;
  }
  int64_t size() const {
    int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= shape[d];
    return n;
  }

  // Whether the memory from the first to the last item meets that of `other`.
  bool may_overlap(const Array& other) const {
    const auto mine = extent(), theirs = other.extent();
    return mine.first < theirs.second && theirs.first < mine.second;
  }

  // Whether two items may share memory: each dimension must step over all that the shorter steps reach.
  bool overlaps_itself() const {
    if (is_contiguous()) return false;
    std::array<std::pair<int64_t, int64_t>, kMaxDims> steps;
    int n = 0;
    for (int d = 0; d < ndim; ++d)
      if (shape[d] != 1) steps[n++] = {std::abs(strides[d]), shape[d]};
    std::sort(steps.begin(), steps.begin() + n);
    int64_t reach = itemsize;
    for (int d = 0; d < n; ++d) {
      if (steps[d].first < reach) return true;
      reach += steps[d].first * (steps[d].second - 1);
    }
    return false;
  }

  // Keeps what a DLPack capsule lends until the call is over.
  void own(py::object capsule) { owner_ = std::move(capsule); }

 private:
  std::pair<const char*, const char*> extent() const {
    if (size() == 0) return {nullptr, nullptr};
    const char *first = data, *last = data + itemsize;
    for (int d = 0; d < ndim; ++d) (strides[d] < 0 ? first : last) += strides[d] * (shape[d] - 1);
    return {first, last};
  }

  py::object owner_;
};

// Taking the GIL in an interpreter that is shutting down ends a daemon thread before Python 3.14, by unwinding its
// stack: destructors would touch Python objects without the GIL. Here such a thread sleeps until the process is gone,
// as Python 3.14 has it.
template <class Take>
void take_gil(const Take& take) {
  try {
    take();
  } catch (...) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// Lets go of the GIL around a kernel.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;
  ~ReleaseGil() {
    take_gil([&] { PyEval_RestoreThread(state_); });
  }

 private:
  PyThreadState* state_;
};

// f() without the GIL: for what may wait for a lock that another thread holds for long.
template <class F>
auto without_gil(F f) {
  ReleaseGil release;
  return f();
}

// ---------------------------------------------------------------- errors
[[noreturn]] inline void raise_type(const std::string& text) { throw py::type_error(text); }
[[noreturn]] inline void raise_value(const std::string& text) { throw py::value_error(text); }

inline std::string type_name(PyObject* object) {
  return py::cast<std::string>(py::type::handle_of(object).attr("__name__"));
}

// Shortest text that reads back as the same double, as Python writes it.
inline std::string repr(double x) { return py::cast<std::string>(py::repr(py::float_(x))); }

template <class Shape>
std::string shape_text(const Shape& shape, int ndim) {
  std::string text = "(";
  for (int d = 0; d < ndim; ++d) text += std::to_string(shape[d]) + (d + 1 < ndim ? ", " : ndim == 1 ? "," : "");
  return text + ")";
}

inline std::string dtype_text(const Array& a) {
  std::string text = py::str(py::getattr(py::handle(a.object), "dtype", py::str(dtype_name(a.dtype))));
  return text.compare(0, 6, "torch.") == 0 ? text.substr(6) : text;
}

inline std::string device_text(const Array& a) {
  if (py::hasattr(py::handle(a.object), "device")) return py::str(py::handle(a.object).attr("device"));
  return "DLPack device " + std::to_string(a.device.device_type) + ":" + std::to_string(a.device.device_id);
}

// ---------------------------------------------------------------- reading
inline DType dtype_of(DLDataType t) {
  if (t.lanes != 1) return DType::other;
  switch (t.code << 8 | t.bits) {
    case kDLFloat << 8 | 32:
      return DType::f32;
    case kDLFloat << 8 | 64:
      return DType::f64;
    case kDLFloat << 8 | 16:
      return DType::f16;
    case kDLBfloat << 8 | 16:
      return DType::bf16;
    case kDLInt << 8 | 64:
      return DType::i64;
    case kDLInt << 8 | 32:
      return DType::i32;
    case kDLInt << 8 | 16:
      return DType::i16;
    case kDLInt << 8 | 8:
      return DType::i8;
    case kDLUInt << 8 | 64:
      return DType::u64;
    case kDLUInt << 8 | 32:
      return DType::u32;
    case kDLUInt << 8 | 16:
      return DType::u16;
    case kDLUInt << 8 | 8:
      return DType::u8;
    case kDLBool << 8 | 8:
      return DType::boolean;
    default:
      return DType::other;
  }
}

inline DLDataType dl_dtype_of(DType t) {
  static const DLDataType types[] = {{kDLFloat, 32, 1}, {kDLFloat, 64, 1}, {kDLFloat, 16, 1}, {kDLBfloat, 16, 1},
                                     {kDLInt, 64, 1},   {kDLInt, 32, 1},   {kDLInt, 16, 1},   {kDLInt, 8, 1},
                                     {kDLUInt, 64, 1},  {kDLUInt, 32, 1},  {kDLUInt, 16, 1},  {kDLUInt, 8, 1},
                                     {kDLBool, 8, 1},   {kDLFloat, 0, 1}};
  return types[static_cast<int>(t)];
}

inline int numpy_type(DType t) {
  using api = py::detail::npy_api;
  static const int types[] = {api::NPY_FLOAT_,
                              api::NPY_DOUBLE_,
                              23,
                              -1,
                              api::NPY_INT64_,
                              api::NPY_INT32_,
                              api::NPY_INT16_,
                              api::NPY_INT8_,
                              api::NPY_UINT64_,
                              api::NPY_UINT32_,
                              api::NPY_UINT16_,
                              api::NPY_UINT8_,
                              api::NPY_BOOL_,
                              -1};
  return types[static_cast<int>(t)];
}

inline DType dtype_of_numpy(int type_num) {
  using api = py::detail::npy_api;
  switch (type_num) {
    case api::NPY_FLOAT_:
      return DType::f32;
    case api::NPY_DOUBLE_:
      return DType::f64;
    case 23:
      return DType::f16;
    case api::NPY_BOOL_:
      return DType::boolean;
    case api::NPY_BYTE_:
      return DType::i8;
    case api::NPY_UBYTE_:
      return DType::u8;
    case api::NPY_SHORT_:
      return DType::i16;
    case api::NPY_USHORT_:
      return DType::u16;
    case api::NPY_INT_:
      return DType::i32;
    case api::NPY_UINT_:
      return DType::u32;
    case api::NPY_LONG_:
      return sizeof(long) == 8 ? DType::i64 : DType::i32;
    case api::NPY_ULONG_:
      return sizeof(long) == 8 ? DType::u64 : DType::u32;
    case api::NPY_LONGLONG_:
      return DType::i64;
    case api::NPY_ULONGLONG_:
      return DType::u64;
    default:
      return DType::other;
  }
}

inline void fill_from_dltensor(Array& a, const DLTensor& t, const char* where) {
  a.device = t.device;
  a.ndim = t.ndim;
  a.dl_dtype = t.dtype;
  a.dtype = dtype_of(t.dtype);
  a.itemsize = t.dtype.bits * t.dtype.lanes / 8;
  if (t.ndim > kMaxDims)
    raise_value(std::string(where) + " must have at most " + std::to_string(kMaxDims) + " dimensions, got " +
                std::to_string(t.ndim));
  int64_t expected = a.itemsize;
  for (int d = t.ndim - 1; d >= 0; --d) {
    a.shape[d] = t.shape[d];
    a.strides[d] = t.strides ? t.strides[d] * a.itemsize : expected;
    expected *= t.shape[d];
  }
  a.data = static_cast<char*>(t.data);
  if (a.data) a.data += t.byte_offset;
}

inline void load_numpy(Array& a, PyObject* object, const char* where) {
  const auto* array = reinterpret_cast<const py::detail::PyArray_Proxy*>(object);
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
  const auto* descr = py::detail::array_descriptor1_proxy(array->descr);
  a.dtype = dtype_of_numpy(descr->type_num);
  a.writable = array->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
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
      const py::dtype dt = py::reinterpret_borrow<py::dtype>(array->descr);
      a.itemsize = dt.itemsize();
      a.has_objects = py::cast<bool>(dt.attr("hasobject"));
    }
  }
  a.aligned = array->flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  // Numbers of a foreign byte order cannot be read; rows of them can still be copied.
  if (descr->byteorder != '=' && descr->byteorder != '|') a.dtype = DType::other;
}

// type(x).__dlpack_c_exchange_api__ of a framework's tensor type, or null. Remembered for a few types; the GIL guards
// it.
inline const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
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

[[noreturn]] inline void raise_no_data(PyObject* object, const char* where) {
  PyErr_Clear();
  const auto functorch = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("torch._C._functorch").ptr()));
  PyErr_Clear();
  if (functorch && py::hasattr(functorch, "is_functorch_wrapped_tensor") &&
      py::cast<bool>(functorch.attr("is_functorch_wrapped_tensor")(py::handle(object))))
    throw std::runtime_error(
        std::string(where) +
        " is inside a transform of torch.func (vmap, grad, jvp, ...), which the kernels do not "
        "support: call them outside it, on the whole batch, with torch.autograd.grad for gradients");
  raise_value(std::string(where) + " has no data (a fake, meta or sparse tensor?)");
}

// NumPy's masked arrays are arrays too, but nothing here looks at their masks.
inline void check_not_masked(PyObject* object, const char* where) {
  const auto ma = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("numpy.ma").ptr()));
  PyErr_Clear();
  if (ma && py::hasattr(ma, "MaskedArray") && py::isinstance(py::handle(object), ma.attr("MaskedArray")))
    raise_type(std::string(where) + " must not be a masked array, whose mask would be ignored: give filled(value)");
}

// torch keeps -x and conj(x) of some views as a mark on the tensor that DLPack's C functions do not see.
inline void check_not_lazy(PyObject* object, bool is_complex, const char* where) {
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

inline void load_capsule(Array& a, PyObject* object, const char* where) {
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
    raise_value(std::string(where) + " could not be read through DLPack (" +
                py::cast<std::string>(py::type::handle_of(object).attr("__name__")) + ")");
  } catch (py::cast_error&) {
    raise_value(std::string(where) + " could not be read through DLPack (" +
                py::cast<std::string>(py::type::handle_of(object).attr("__name__")) + ")");
  }
}

// `where` is "<op>: <argument>", the beginning of every error text.
inline Array load(PyObject* object, const char* where) {
  Array a;
  a.object = object;
  const auto& numpy = py::detail::npy_api::get();
  const bool is_plain = Py_TYPE(object) == numpy.PyArray_Type_;
  if (is_plain || numpy.PyArray_Check_(object)) {
    if (!is_plain) check_not_masked(object, where);
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

// ---------------------------------------------------------------- checks
inline void check_cpu(const Array& a, const char* where) {
  if (a.device.device_type != kDLCPU && a.device.device_type != kDLCUDAHost)
    raise_value(std::string(where) + " must be on cpu, got " + device_text(a));
}

// `device` is the tree's; a CUDA kernel's arguments are never copied to it.
inline void check_cuda_device(const Array& a, const char* where, DLDevice device) {
  if (a.device.device_type != device.device_type || a.device.device_id != device.device_id)
    raise_value(std::string(where) + " must be on cuda:" + std::to_string(device.device_id) + " like the tree, got " +
                device_text(a));
}

inline void check_dtype(const Array& a, const char* where, std::initializer_list<DType> allowed) {
  for (DType t : allowed)
    if (a.dtype == t) return;
  std::string text = std::string(where) + " must have dtype ";
  for (const DType* t = allowed.begin(); t != allowed.end(); ++t)
    text += std::string(t == allowed.begin() ? "" : " or ") + dtype_name(*t);
  raise_value(text + ", got " + dtype_text(a));
}

inline void check_has_data(const Array& a, const char* where) {
  if (!a.data && a.size() > 0) raise_no_data(a.object, where);
}

// The usual load of a CPU kernel's argument.
inline Array load_cpu(PyObject* object, const char* where, std::initializer_list<DType> allowed) {
  Array a = load(object, where);
  check_cpu(a, where);
  check_has_data(a, where);
  check_dtype(a, where, allowed);
  return a;
}

inline void check_ndim_1(const Array& a, const char* where) {
  if (a.ndim != 1) raise_value(std::string(where) + " must have shape [B], got " + shape_text(a.shape, a.ndim));
}

inline void check_shape_like(const Array& a, const char* where, const Array& like, const char* like_name) {
  if (a.ndim == like.ndim && std::equal(a.shape.begin(), a.shape.begin() + a.ndim, like.shape.begin())) return;
  raise_value(std::string(where) + " must have shape " + shape_text(like.shape, like.ndim) + " like " + like_name +
              ", got " + shape_text(a.shape, a.ndim));
}

// All arrays of a call are of one kind: nobody finds a result in the framework that was not meant.
inline void check_kind_like(const Array& a, const char* where, const Array& like, const char* like_name) {
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

inline void check_dtype_like(const Array& a, const char* where, const Array& like, const char* like_name) {
  if (a.dtype != like.dtype)
    raise_value(std::string(where) + " must have dtype " + dtype_name(like.dtype) + " like " + like_name + ", got " +
                dtype_text(a));
}

// ---------------------------------------------------------------- results
struct Result {
  py::object object;
  char* data = nullptr;
};

// Steals the reference to `descr`.
inline Result allocate_numpy(PyObject* descr, const int64_t* shape, int ndim) {
  auto& api = py::detail::npy_api::get();
  Py_intptr_t dims[kMaxDims];
  std::copy(shape, shape + ndim, dims);
  PyObject* array = api.PyArray_NewFromDescr_(api.PyArray_Type_, descr, ndim, dims, nullptr, nullptr, 0, nullptr);
  if (!array) throw py::error_already_set();
  return {py::reinterpret_steal<py::object>(array), reinterpret_cast<py::detail::PyArray_Proxy*>(array)->data};
}

inline Result allocate_numpy(DType dtype, const int64_t* shape, int ndim) {
  return allocate_numpy(py::detail::npy_api::get().PyArray_DescrFromType_(numpy_type(dtype)), shape, ndim);
}

inline Result allocate_exchange(const DLPackExchangeAPI* api, DLDevice device, DLDataType dtype, const int64_t* shape,
                                int ndim) {
  DLTensor prototype{};
  prototype.device = device;
  prototype.dtype = dtype;
  prototype.ndim = ndim;
  prototype.shape = const_cast<int64_t*>(shape);
  DLManagedTensorVersioned* managed = nullptr;
  std::string error;
  auto set_error = [](void* context, const char* kind, const char* message) {
    *static_cast<std::string*>(context) = std::string(kind) + ": " + message;
  };
  if (api->managed_tensor_allocator(&prototype, &managed, &error, set_error) != 0) {
    if (PyErr_Occurred()) throw py::error_already_set();
    throw std::runtime_error("allocating a result failed: " + error);
  }
  char* data = static_cast<char*>(managed->dl_tensor.data) + managed->dl_tensor.byte_offset;
  void* object = nullptr;
  if (api->managed_tensor_to_py_object_no_sync(managed, &object) != 0) throw py::error_already_set();
  return {py::reinterpret_steal<py::object>(static_cast<PyObject*>(object)), data};
}

// A new C-contiguous array of the kind and on the device of `like`. A result for a capsule's owner is NumPy until
// `hand_back` wraps it.
inline Result allocate_like(const Array& like, DType dtype, const int64_t* shape, int ndim) {
  if (like.kind == Kind::exchange) return allocate_exchange(like.api, like.device, dl_dtype_of(dtype), shape, ndim);
  return allocate_numpy(dtype, shape, ndim);
}

// The finished result as the caller's kind of array.
inline py::object hand_back(Result&& result, const Array& like) {
  if (like.kind != Kind::capsule) return std::move(result.object);
  const py::handle object(like.object);
  if (py::hasattr(object, "__array_namespace__"))
    return object.attr("__array_namespace__")().attr("from_dlpack")(result.object);
  if (py::cast<std::string>(py::type::handle_of(object).attr("__module__")).compare(0, 5, "torch") == 0)
    return py::module_::import("torch").attr("from_numpy")(result.object);  // torch before 2.9
  return std::move(result.object);
}

// ---------------------------------------------------------------- small 1-D inputs
// A 1-D array as contiguous numbers of one type: its own memory where that fits, else a copy of B numbers. `copy` asks
// for a copy in any case, for what is checked first and used after: another thread may write to the caller's array
// meanwhile.
template <class T>
class Contiguous {
 public:
  explicit Contiguous(const Array& a, bool copy = false) : n_(a.shape[0]) {
    if (!copy && a.aligned && is<T>(a.dtype) && (a.strides[0] == sizeof(T) || n_ <= 1)) {
      data_ = reinterpret_cast<const T*>(a.data);
      return;
    }
    copy_.resize(n_);
    switch (a.dtype) {
      case DType::i64:
        fill<int64_t>(a);
        break;
      case DType::i32:
        fill<int32_t>(a);
        break;
      case DType::f64:
        fill<double>(a);
        break;
      case DType::f32:
        fill<float>(a);
        break;
      default:
        break;  // excluded by check_dtype
    }
    data_ = copy_.data();
  }
  explicit Contiguous(T scalar) : n_(1), copy_(1, scalar), data_(copy_.data()) {}
  Contiguous(int64_t n, T scalar) : n_(n), copy_(n, scalar), data_(copy_.data()) {}
  const T* data() const { return data_; }
  int64_t size() const { return n_; }

 private:
  template <class U>
  static bool is(DType t) {
    return t == (std::is_same<U, int64_t>::value  ? DType::i64
                 : std::is_same<U, double>::value ? DType::f64
                                                  : DType::f32);
  }
  template <class U>
  void fill(const Array& a) {
    for (int64_t i = 0; i < n_; ++i) {
      U x;
      std::memcpy(&x, a.data + i * a.strides[0], sizeof x);
      copy_[i] = static_cast<T>(x);
    }
  }
  int64_t n_;
  std::vector<T> copy_;
  const T* data_ = nullptr;
};

}  // namespace fastrl
