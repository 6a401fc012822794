// SPDX-License-Identifier: Apache-2.0
// affinity_upsample and its backward, CPU. Equation: pyindexnet/reference/affinity_upsample.py; kernels: csrc/cpu/window.h.
#include "window_device.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  using pyindexnet::WindowDevice;
  m.impl("affinity_upsample", TORCH_BOX(&pyindexnet::affinity_upsample<WindowDevice>));
  m.impl("affinity_upsample_backward", TORCH_BOX(&pyindexnet::affinity_upsample_backward<WindowDevice>));
}
