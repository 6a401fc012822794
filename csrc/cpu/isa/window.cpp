// SPDX-License-Identifier: Apache-2.0
// All dynamic-kernel operators, CPU: the kernels, compiled once per instruction set (csrc/cpu/window.h).
#include "../window.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

void run_window(const WindowArgs& a, const WindowPlan& plan, bool backward, WindowRange range, void* scratch) {
  switch (a.dtype) {
    case DType::float64:
      return run_window_dtype<double>(a, plan, backward, range, scratch);
    case DType::float32:
      return run_window_dtype<float>(a, plan, backward, range, scratch);
    case DType::float16:
      return run_window_dtype<float16>(a, plan, backward, range, scratch);
    case DType::bfloat16:
      return run_window_dtype<bfloat16>(a, plan, backward, range, scratch);
  }
}

void sum_parts(const WindowArgs& a) {
  switch (a.dtype) {
    case DType::float64:
      return sum_generator_parts<double>(a);
    case DType::float32:
      return sum_generator_parts<float>(a);
    case DType::float16:
      return sum_generator_parts<float16>(a);
    case DType::bfloat16:
      return sum_generator_parts<bfloat16>(a);
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
