// SPDX-License-Identifier: Apache-2.0
// affinity_upsample, CUDA. Equation: pyindexnet/reference/affinity_upsample.py; kernels: window.cuh, affinity.cuh.
// Sums in float32, float64 for float64.
#include "affinity_launch.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) {
  using Device = pyindexnet::cuda::AffinityDevice<true>;
  m.impl(PYINDEXNET_OP("affinity_upsample"), TORCH_BOX(&pyindexnet::affinity_upsample<Device>));
  m.impl(PYINDEXNET_OP("affinity_upsample_backward"), TORCH_BOX(&pyindexnet::affinity_upsample_backward<Device>));
}
