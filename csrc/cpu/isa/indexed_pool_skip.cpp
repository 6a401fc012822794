// SPDX-License-Identifier: Apache-2.0
// indexed_pool_skip and its backward, CPU: the kernels, compiled once per instruction set (csrc/cpu/index_cell.h).
#include "../index_cell.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

void indexed_pool_skip_cells(const CellArgs& a, bool backward, CellRange range) {
  backward ? run_cells<kPoolSkipBackward>(a, range) : run_cells<kPoolSkip>(a, range);
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
