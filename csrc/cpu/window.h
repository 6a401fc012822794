// SPDX-License-Identifier: Apache-2.0
// The dynamic-kernel operators, CPU. Equations: csrc/common/window.h. Compiled once per instruction set by
// csrc/cpu/isa/window.cpp. A vector is a run of cells in a row. The weights of a strip of rows are normalised into scratch
// memory once, for all channels of the group; rows of x and of the gradient are copied there with a border of zeros (widened,
// columns of equal remainder by the stride side by side), so that the inner loops have no borders, strides or dtypes. They keep
// a block of channels x sub-positions (or taps) in registers. Where nothing would change on the way
// (csrc/cpu/window_in_place.h), x is read in place. Arithmetic in float, double for double.
#pragma once
#include "window_backward.h"
#include "window_forward.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

template <class T, int kR>
void run_window_scale(const WindowArgs& a, const WindowPlan& plan, bool backward, WindowRange range, void* scratch) {
  backward ? WindowBackward<T, kR>(a, plan, scratch).run(range) : WindowForward<T, kR>(a, plan, scratch).run(range);
}

template <class T>
void run_window_dtype(const WindowArgs& a, const WindowPlan& plan, bool backward, WindowRange range, void* scratch) {
  switch (a.scale) {
    case 1:
      return run_window_scale<T, 1>(a, plan, backward, range, scratch);
    case 2:
      return run_window_scale<T, 2>(a, plan, backward, range, scratch);
    case 3:
      return run_window_scale<T, 3>(a, plan, backward, range, scratch);
    default:
      return run_window_scale<T, 4>(a, plan, backward, range, scratch);
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
