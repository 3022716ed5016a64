// What a handler of XLA's foreign function interface is called with: the part of its C ABI that we read, in our own
// words, so that nothing of JAX is needed to build. The layouts are those of API version 0; fields that later versions
// append are found by `struct_size`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrl {
namespace xla {

struct Extension {
  size_t struct_size;
  int type;  // kMetadata: asked for the handler's version, not called
  Extension* next;
};
constexpr int kMetadata = 1;

struct ApiVersion {
  size_t struct_size;
  Extension* extension;
  int major_version, minor_version;
};
struct Metadata {
  size_t struct_size;
  ApiVersion api_version;
  uint32_t traits;
};
struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

enum DataType { kBool = 1, kS32 = 4, kS64 = 5, kU8 = 6, kU32 = 8, kF32 = 11, kF64 = 12 };

struct Buffer {
  size_t struct_size;
  Extension* extension;
  int dtype;
  void* data;
  int64_t rank;
  int64_t* dims;
};

// Arguments or results; all of them are buffers.
struct Buffers {
  size_t struct_size;
  Extension* extension;
  int64_t size;
  int* types;
  Buffer** buffers;
};

struct Name {
  const char* text;
  size_t length;
};
struct Scalar {
  int dtype;
  void* value;
};
struct Attributes {
  size_t struct_size;
  Extension* extension;
  int64_t size;
  int* types;
  Name** names;
  void** values;
};
constexpr int kScalarAttribute = 3;

struct Error;
struct ErrorArguments {
  size_t struct_size;
  Extension* extension;
  const char* message;
  int code;
};
constexpr int kInvalidArgument = 3;

struct Api {
  size_t struct_size;
  Extension* extension;
  ApiVersion api_version;
  const void* internal;
  Error* (*create_error)(ErrorArguments*);
};

struct CallFrame {
  size_t struct_size;
  Extension* extension;
  const Api* api;
  void* context;
  int stage;
  Buffers arguments, results;
  Attributes attributes;
};
constexpr int kExecute = 3;

}  // namespace xla
}  // namespace fastrl
