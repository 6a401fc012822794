// SPDX-License-Identifier: Apache-2.0
// indexed_upsample and its backward, CPU: the kernels, compiled once per instruction set (csrc/cpu/index_cell.h).
#include "../index_cell.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

void indexed_upsample_cells(const CellArgs& a, bool backward, CellRange range) {
  backward ? run_cells<kUpsampleBackward>(a, range) : run_cells<kUpsample>(a, range);
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
