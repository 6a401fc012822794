// SPDX-License-Identifier: Apache-2.0
// affinity_downsample, CUDA. Equation: pyindexnet/reference/affinity_downsample.py; kernels: window.cuh, affinity.cuh.
// Sums in float32, float64 for float64.
#include "affinity_launch.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) {
  using Device = pyindexnet::cuda::AffinityDevice<false>;
  m.impl(PYINDEXNET_OP("affinity_downsample"), TORCH_BOX(&pyindexnet::affinity_downsample<Device>));
  m.impl(PYINDEXNET_OP("affinity_downsample_backward"), TORCH_BOX(&pyindexnet::affinity_downsample_backward<Device>));
}
