// SPDX-License-Identifier: Apache-2.0
// dynamic_downsample and its backward, CPU. Equation: pyindexnet/reference/dynamic_downsample.py; kernels: csrc/cpu/window.h.
#include "window_device.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  using pyindexnet::WindowDevice;
  m.impl("dynamic_downsample", TORCH_BOX(&pyindexnet::dynamic_downsample<WindowDevice>));
  m.impl("dynamic_downsample_backward", TORCH_BOX(&pyindexnet::dynamic_downsample_backward<WindowDevice>));
}
