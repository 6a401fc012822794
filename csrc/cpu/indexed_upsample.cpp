// SPDX-License-Identifier: Apache-2.0
// indexed_upsample and its backward, CPU. Equation: pyindexnet/reference/indexed_upsample.py; kernels: csrc/cpu/index_cell.h.
#include "cell_device.h"

PYINDEXNET_CELL_KERNEL(indexed_upsample_cells)

namespace pyindexnet {

using Device = CellDevice<&select_indexed_upsample_cells>;

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  m.impl("indexed_upsample", TORCH_BOX(&indexed_upsample<Device>));
  m.impl("indexed_upsample_backward", TORCH_BOX(&indexed_upsample_backward<Device>));
}

}  // namespace pyindexnet
