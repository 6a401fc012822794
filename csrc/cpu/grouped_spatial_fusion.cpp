// SPDX-License-Identifier: Apache-2.0
// grouped_spatial_fusion and its backward, CPU. Equation: pyindexnet/reference/grouped_spatial_fusion.py; kernels:
// csrc/cpu/window.h.
#include "window_device.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  using pyindexnet::WindowDevice;
  m.impl("grouped_spatial_fusion", TORCH_BOX(&pyindexnet::grouped_spatial_fusion<WindowDevice>));
  m.impl("grouped_spatial_fusion_backward", TORCH_BOX(&pyindexnet::grouped_spatial_fusion_backward<WindowDevice>));
}
