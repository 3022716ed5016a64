// The dtypes of arrays, and how NumPy and DLPack write them.
#pragma once

#include <cstdint>

#include "binding/dlpack.h"

namespace fastrl {

enum class DType : uint8_t { f32, f64, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean, other };

const char* dtype_name(DType t);

DType dtype_of(DLDataType t);

DLDataType dl_dtype_of(DType t);

int numpy_type(DType t);

DType dtype_of_numpy(int type_num);

}  // namespace fastrl
