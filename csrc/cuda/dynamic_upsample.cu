// SPDX-License-Identifier: Apache-2.0
// dynamic_upsample, CUDA. Equation: pyindexnet/reference/dynamic_upsample.py; kernels: window.cuh.
// Sums in float32, float64 for float64.
#include "window_launch.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) {
  using Device = pyindexnet::cuda::WindowDevice<true>;
  m.impl(PYINDEXNET_OP("dynamic_upsample"), TORCH_BOX(&pyindexnet::dynamic_upsample<Device>));
  m.impl(PYINDEXNET_OP("dynamic_upsample_backward"), TORCH_BOX(&pyindexnet::dynamic_upsample_backward<Device>));
}
