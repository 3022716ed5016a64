// The Python module fastrl._C_cuda: its bindings check tensors, let go of the GIL and launch kernels on the caller's
// stream.
#include <pybind11/pybind11.h>

#include <mutex>

#include "binding/bind_cuda.h"

namespace fastrl {

namespace {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status = cudaGetDevice(&before_);
    if (status != cudaSuccess || before_ == device) return;
    changed_ = true;
    status = cudaSetDevice(device);
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  cudaError_t status;

 private:
  int before_;
  bool changed_ = false;
};

// "name, compute capability x.y, n GiB" of each GPU; empty without a GPU or a driver.
py::list devices() {
  py::list found;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  for (int d = 0; d < count; ++d) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, d) != cudaSuccess) continue;
    found.append(std::string(p.name) + ", compute capability " + std::to_string(p.major) + "." +
                 std::to_string(p.minor) + ", " + std::to_string(p.totalGlobalMem >> 30) + " GiB");
  }
  cudaGetLastError();  // forgotten: no later launch shall report it
  return found;
}

}  // namespace

void launch_on(const DLPackExchangeAPI* api, DLDevice device, const char* op,
               const std::function<cudaError_t(cudaStream_t)>& launches) {
  static std::mutex mutex;
  void* stream = nullptr;
  if (api->current_work_stream(device.device_type, device.device_id, &stream) != 0) throw py::error_already_set();
  cudaError_t status;
  {
    ReleaseGil release;
    std::lock_guard<std::mutex> lock(mutex);
    cudaGetLastError();  // not of this call
    const DeviceGuard guard(device.device_id);
    status = guard.status;
    if (status == cudaSuccess) status = launches(static_cast<cudaStream_t>(stream));
    if (status != cudaSuccess) cudaGetLastError();  // a call that fails leaves its error there, for later launches
  }
  if (status != cudaSuccess) throw std::runtime_error(std::string(op) + ": CUDA error: " + cudaGetErrorString(status));
}

Array load_cuda(py::handle x, const char* where, const Array* first, const char* name,
                std::initializer_list<DType> allowed) {
  Array a = load(x.ptr(), where);
  if (first && (a.kind != first->kind || a.api != first->api))
    raise_type(std::string(where) + " must be a torch.Tensor like " + name + ", got a " +
               (a.kind == Kind::numpy ? "numpy.ndarray" : type_name(a.object)));
  const DLDevice device = first ? first->device : a.device;
  if (a.kind != Kind::exchange || a.device.device_type != kDLCUDA)
    raise_value(std::string(where) + " must be on " +
                (first ? device_name(device) + " like " + name : "a CUDA device") + ", got " + device_text(a));
  if (a.device.device_id != device.device_id)
    raise_value(std::string(where) + " must be on " + device_name(device) + " like " + name + ", got " +
                device_text(a));
  check_has_data(a, where);
  if (allowed.size() > 0) check_dtype(a, where, allowed);
  return a;
}

}  // namespace fastrl

PYBIND11_MODULE(_C_cuda, m) {
  using namespace fastrl;
  m.doc() = "Compiled CUDA kernels of fastrl; call them through fastrl.kernels.";
  def<&devices>(m, "devices()");
  Binding::run_all(m);
}
