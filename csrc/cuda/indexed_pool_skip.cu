// SPDX-License-Identifier: Apache-2.0
// indexed_pool_skip, CUDA. Equation: pyindexnet/reference/indexed_pool_skip.py.
// One pass over cells, forward and backward: index_cell.cuh; choice of kernel: index_cell_launch.h.
// Sums in float32, float64 for float64.
#include "index_cell_launch.h"

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, PYINDEXNET_DISPATCH_KEY, m) {
  using pyindexnet::cuda::Device;
  m.impl(PYINDEXNET_OP("indexed_pool_skip"), TORCH_BOX(&pyindexnet::indexed_pool_skip<Device>));
  m.impl(PYINDEXNET_OP("indexed_pool_skip_backward"), TORCH_BOX(&pyindexnet::indexed_pool_skip_backward<Device>));
}
