// SPDX-License-Identifier: Apache-2.0
// affinity_moments and its backward, CUDA. Equation: pyindexnet/reference/affinity_moments.py; kernels: encoding.cuh.
#include "encoding_launch.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) {
  using Device = pyindexnet::cuda::EncodingDevice<true>;
  m.impl(PYINDEXNET_OP("affinity_moments"), TORCH_BOX(&pyindexnet::affinity_moments<Device>));
  m.impl(PYINDEXNET_OP("affinity_moments_backward"), TORCH_BOX(&pyindexnet::affinity_moments_backward<Device>));
}
