// What the handlers of every op share: reading a call, answering it, and being found by fastrl/jax.py.
#pragma once

#include <cfenv>
#include <cstring>
#include <stdexcept>
#include <string>

#include "binding/xla_ffi.h"
#include "core/parallel.h"

namespace fastrl {
namespace xla {

// The version that the handlers say they are of: that of the JAX that asks. The layouts are the same in all of them.
inline int api_version[2] = {0, 0};

// At namespace scope in a jax.cpp: `const Handler handler("name", &handle<Call, run>);`.
class Handler {
 public:
  using Function = Error* (*)(CallFrame*);
  Handler(const char* name, Function function) : name(name), function(function), next(first) { first = this; }
  Handler(const Handler&) = delete;
  Handler& operator=(const Handler&) = delete;

  const char* const name;
  const Function function;
  const Handler* const next;
  static inline const Handler* first = nullptr;  // set before any constructor runs
};

class Call {
 public:
  explicit Call(const CallFrame& frame) : frame_(frame) {}

  double number(const char* name) const { return attribute<double>(name, kF64); }
  int64_t whole(const char* name) const { return attribute<int64_t>(name, kS64); }
  int64_t arguments() const { return frame_.arguments.size; }
  const Buffer& argument(int64_t k) const { return at(frame_.arguments, k); }
  const Buffer& result(int64_t k) const { return at(frame_.results, k); }

 private:
  static const Buffer& at(const Buffers& buffers, int64_t k) {
    if (k >= buffers.size) throw std::invalid_argument("too few arguments");
    return *buffers.buffers[k];
  }

  template <class T>
  T attribute(const char* name, int dtype) const {
    const Attributes& all = frame_.attributes;
    for (int64_t i = 0; i < all.size; ++i) {
      const Name& n = *all.names[i];
      if (n.length != std::strlen(name) || std::memcmp(n.text, name, n.length) != 0) continue;
      const auto* scalar = static_cast<const Scalar*>(all.values[i]);
      if (all.types[i] == kScalarAttribute && scalar->dtype == dtype) return *static_cast<const T*>(scalar->value);
    }
    throw std::invalid_argument(std::string("no attribute ") + name);
  }

  const CallFrame& frame_;
};

// XLA's threads take subnormal numbers for 0 (findings/xla_foreign_calls_lose_subnormals.sh); the kernels do not.
class DefaultFloats {
 public:
  DefaultFloats() { std::fegetenv(&before_), std::fesetenv(FE_DFL_ENV); }
  ~DefaultFloats() { std::fesetenv(&before_); }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
  std::fenv_t before_;
};

// Runs in XLA's threads, without the GIL.
template <class C, void (*run)(C&)>
Error* handle(CallFrame* frame) {
  if (frame->extension && frame->extension->type == kMetadata) {
    ApiVersion& version = reinterpret_cast<MetadataExtension*>(frame->extension)->metadata->api_version;
    version.major_version = api_version[0], version.minor_version = api_version[1];
    return nullptr;
  }
  if (frame->stage != kExecute) return nullptr;
  std::string message = "fastrl: ";
  const DefaultFloats floats;
  try {
    C call(*frame);
    run(call);
    return nullptr;
  } catch (const std::exception& error) {
    message += error.what();
  } catch (const Interrupted&) {  // in the main thread, which XLA may call us in
    message += "interrupted";
  }
  ErrorArguments arguments{sizeof(ErrorArguments), nullptr, message.c_str(), kInvalidArgument};
  return frame->api->create_error(&arguments);
}

}  // namespace xla
}  // namespace fastrl
