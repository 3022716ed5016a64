#include "binding/dtype.h"

#include <pybind11/numpy.h>

namespace fastrl {

namespace py = pybind11;

const char* dtype_name(DType t) {
  static const char* const names[] = {"float32", "float64", "float16", "bfloat16", "int64", "int32", "int16",
                                      "int8",    "uint64",  "uint32",  "uint16",   "uint8", "bool",  "other"};
  return names[static_cast<int>(t)];
}

DType dtype_of(DLDataType t) {
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

DLDataType dl_dtype_of(DType t) {
  static const DLDataType types[] = {{kDLFloat, 32, 1}, {kDLFloat, 64, 1}, {kDLFloat, 16, 1}, {kDLBfloat, 16, 1},
                                     {kDLInt, 64, 1},   {kDLInt, 32, 1},   {kDLInt, 16, 1},   {kDLInt, 8, 1},
                                     {kDLUInt, 64, 1},  {kDLUInt, 32, 1},  {kDLUInt, 16, 1},  {kDLUInt, 8, 1},
                                     {kDLBool, 8, 1},   {kDLFloat, 0, 1}};
  return types[static_cast<int>(t)];
}

int numpy_type(DType t) {
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

DType dtype_of_numpy(int type_num) {
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

}  // namespace fastrl
