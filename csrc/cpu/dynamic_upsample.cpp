// SPDX-License-Identifier: Apache-2.0
// dynamic_upsample and its backward, CPU. Equation: pyindexnet/reference/dynamic_upsample.py; kernels: csrc/cpu/window.h.
#include "window_device.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  using pyindexnet::WindowDevice;
  m.impl("dynamic_upsample", TORCH_BOX(&pyindexnet::dynamic_upsample<WindowDevice>));
  m.impl("dynamic_upsample_backward", TORCH_BOX(&pyindexnet::dynamic_upsample_backward<WindowDevice>));
}
