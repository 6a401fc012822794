// SPDX-License-Identifier: Apache-2.0
// dynamic_downsample, CUDA. Equation: pyindexnet/reference/dynamic_downsample.py; kernels: window.cuh.
// Sums in float32, float64 for float64.
#include "window_launch.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) {
  using Device = pyindexnet::cuda::WindowDevice<false>;
  m.impl(PYINDEXNET_OP("dynamic_downsample"), TORCH_BOX(&pyindexnet::dynamic_downsample<Device>));
  m.impl(PYINDEXNET_OP("dynamic_downsample_backward"), TORCH_BOX(&pyindexnet::dynamic_downsample_backward<Device>));
}
