#include "binding/results.h"

#include <pybind11/numpy.h>  // npy_api

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "binding/numpy.h"

namespace fastrl {

Result allocate_numpy(PyObject* descr, const int64_t* shape, int ndim) {
  auto& api = py::detail::npy_api::get();
  Py_intptr_t dims[kMaxDims];
  std::copy(shape, shape + ndim, dims);
  PyObject* array = api.PyArray_NewFromDescr_(api.PyArray_Type_, descr, ndim, dims, nullptr, nullptr, 0, nullptr);
  if (!array) throw py::error_already_set();
  return {py::reinterpret_steal<py::object>(array), numpy_array(array)->data};
}

Result allocate_numpy(DType dtype, const int64_t* shape, int ndim) {
  return allocate_numpy(py::detail::npy_api::get().PyArray_DescrFromType_(numpy_type(dtype)), shape, ndim);
}

Result allocate_exchange(const DLPackExchangeAPI* api, DLDevice device, DLDataType dtype, const int64_t* shape,
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

Result allocate_like(const Array& like, DType dtype, const int64_t* shape, int ndim) {
  if (like.kind == Kind::exchange) return allocate_exchange(like.api, like.device, dl_dtype_of(dtype), shape, ndim);
  return allocate_numpy(dtype, shape, ndim);
}

py::object hand_back(Result&& result, const Array& like) {
  if (like.kind != Kind::capsule) return std::move(result.object);
  const py::handle object(like.object);
  if (py::hasattr(object, "__array_namespace__"))
    return object.attr("__array_namespace__")().attr("from_dlpack")(result.object);
  if (py::hasattr(py::type::handle_of(object), "__torch_function__"))  // a tensor of torch before 2.10, or its subclass
    return import_module("torch").attr("from_numpy")(result.object);
  return std::move(result.object);
}

}  // namespace fastrl
