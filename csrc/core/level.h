// Which of the processor's instruction sets the kernels use.
#pragma once

namespace fastrl {

// Its name, for people.
const char* simd_level();

}  // namespace fastrl
