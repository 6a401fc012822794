// SPDX-License-Identifier: Apache-2.0
// Runs a cell kernel of csrc/cpu/isa on the CPU: instruction set, work items, threads.
#pragma once
#include "../common/index_cell_host.h"
#include "isa.h"

namespace pyindexnet {

using CellKernelPointer = void (*)(const CellArgs&, bool backward, CellRange);

#define PYINDEXNET_CELL_KERNEL(NAME) PYINDEXNET_ISA_KERNEL(NAME, const CellArgs&, bool, CellRange)

template <CellKernelPointer (*kSelect)()>
struct CellDevice {
  static int guard(const Tensor&) { return 0; }

  template <CellOp Op>
  static void run(const CellArgs& a) {
    if (a.N == 0) return;
    const CellKernelPointer kernel = kSelect();
    const bool rows_of_channel = !a.channels_last && !a.holistic;
    const int64_t tile_rows = !a.channels_last && a.holistic ? holistic_tile_rows(a) : 1;
    const int64_t items = a.N * (rows_of_channel ? a.C : 1) * ((a.h + tile_rows - 1) / tile_rows);
    // A thread should get no less than about 32k logits: below that, starting it costs more than it saves.
    const int64_t per_item = tile_rows * a.w * (rows_of_channel ? 1 : a.C) * a.ratio * a.ratio;
    const int64_t grain = per_item < 32768 ? (32768 + per_item - 1) / per_item : 1;
    torch::stable::parallel_for(
        0, items, grain, [&](int64_t begin, int64_t end) { kernel(a, Op.backward(), {begin, end, tile_rows}); });
  }

 private:
  // All channels of a tile are visited in turn, so a tile should be long runs of memory (2048 cells and more) but leave four
  // tiles per thread.
  static int64_t holistic_tile_rows(const CellArgs& a) {
    const int64_t for_runs = (2048 + a.w - 1) / a.w;
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t for_balance = a.N * a.h / (4 * threads);
    const int64_t rows = for_runs < for_balance ? for_runs : for_balance;
    return rows < 1 ? 1 : rows;
  }
};

}  // namespace pyindexnet
