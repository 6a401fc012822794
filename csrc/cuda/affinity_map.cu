// SPDX-License-Identifier: Apache-2.0
// affinity_map and its backward, CUDA. Equation: pyindexnet/reference/affinity_map.py; kernels: encoding.cuh.
#include "encoding_launch.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) {
  using Device = pyindexnet::cuda::EncodingDevice<false>;
  m.impl(PYINDEXNET_OP("affinity_map"), TORCH_BOX(&pyindexnet::affinity_map<Device>));
  m.impl(PYINDEXNET_OP("affinity_map_backward"), TORCH_BOX(&pyindexnet::affinity_map_backward<Device>));
}
