// SPDX-License-Identifier: Apache-2.0
// grouped_spatial_fusion, CUDA. Equation: pyindexnet/reference/grouped_spatial_fusion.py; kernels: window.cuh.
// Sums in float32, float64 for float64.
#include "window_launch.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) {
  using Device = pyindexnet::cuda::WindowDevice<false>;
  m.impl(PYINDEXNET_OP("grouped_spatial_fusion"), TORCH_BOX(&pyindexnet::grouped_spatial_fusion<Device>));
  m.impl(PYINDEXNET_OP("grouped_spatial_fusion_backward"), TORCH_BOX(&pyindexnet::grouped_spatial_fusion_backward<Device>));
}
