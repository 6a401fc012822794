// SPDX-License-Identifier: Apache-2.0
// affinity_downsample and its backward, CPU. Equation: pyindexnet/reference/affinity_downsample.py; kernels: csrc/cpu/window.h.
#include "window_device.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  using pyindexnet::WindowDevice;
  m.impl("affinity_downsample", TORCH_BOX(&pyindexnet::affinity_downsample<WindowDevice>));
  m.impl("affinity_downsample_backward", TORCH_BOX(&pyindexnet::affinity_downsample_backward<WindowDevice>));
}
