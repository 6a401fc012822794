// SPDX-License-Identifier: Apache-2.0
// affinity_map and its backward, CPU. Equation: pyindexnet/reference/affinity_map.py; kernels: csrc/cpu/isa/encoding.cpp.
#include "encoding_device.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  using pyindexnet::EncodingDevice;
  m.impl("affinity_map", TORCH_BOX(&pyindexnet::affinity_map<EncodingDevice>));
  m.impl("affinity_map_backward", TORCH_BOX(&pyindexnet::affinity_map_backward<EncodingDevice>));
}
