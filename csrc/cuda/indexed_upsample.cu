// SPDX-License-Identifier: Apache-2.0
// indexed_upsample, CUDA. Equation: pyindexnet/reference/indexed_upsample.py.
// One pass over cells, forward and backward: index_cell.cuh; choice of kernel: index_cell_launch.h.
// Sums in float32, float64 for float64.
#include "index_cell_launch.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) {
  using pyindexnet::cuda::Device;
  m.impl(PYINDEXNET_OP("indexed_upsample"), TORCH_BOX(&pyindexnet::indexed_upsample<Device>));
  m.impl(PYINDEXNET_OP("indexed_upsample_backward"), TORCH_BOX(&pyindexnet::indexed_upsample_backward<Device>));
}
