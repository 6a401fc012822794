// SPDX-License-Identifier: Apache-2.0
// affinity_moments and its backward, CPU. Equation: pyindexnet/reference/affinity_moments.py; kernels:
// csrc/cpu/isa/encoding.cpp.
#include "encoding_device.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  using pyindexnet::EncodingDevice;
  m.impl("affinity_moments", TORCH_BOX(&pyindexnet::affinity_moments<EncodingDevice>));
  m.impl("affinity_moments_backward", TORCH_BOX(&pyindexnet::affinity_moments_backward<EncodingDevice>));
}
