// SPDX-License-Identifier: Apache-2.0
// indexed_pool_skip and its backward, CPU. Equation: pyindexnet/reference/indexed_pool_skip.py; kernels: csrc/cpu/index_cell.h.
#include "cell_device.h"

PYINDEXNET_CELL_KERNEL(indexed_pool_skip_cells)

namespace pyindexnet {

using Device = CellDevice<&select_indexed_pool_skip_cells>;

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  m.impl("indexed_pool_skip", TORCH_BOX(&indexed_pool_skip<Device>));
  m.impl("indexed_pool_skip_backward", TORCH_BOX(&indexed_pool_skip_backward<Device>));
}

}  // namespace pyindexnet
