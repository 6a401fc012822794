// SPDX-License-Identifier: Apache-2.0
// Host side of affinity.cuh: tiles, parts, blocks.
#pragma once
#include "../common/affinity_host.h"
#include "affinity.cuh"
#include "window_launch.h"

namespace pyindexnet::cuda {

// Elements of shared memory for a cell in affinity_gradients_kernel.
inline int64_t affinity_elements(const WindowArgs& a) {
  return 2 * (a.group_logits() + a.rank);
}

template <class T>
int64_t affinity_tiles(const WindowArgs& a) {
  const int cells = cells_per_tile<T>(a, affinity_elements(a));
  return (a.h * a.w + cells - 1) / cells;
}

// What csrc/common/affinity_host.h asks of a device.
template <bool kScales>
struct AffinityDevice {
  static DeviceGuard guard(const Tensor& x) { return DeviceGuard(x.get_device_index()); }

  // As many as fill the device.
  static int64_t count_parts(const WindowArgs& a) {
    int64_t tiles = 0;
    by_dtype_and_scale<false>(a, [&](auto zero, auto) { tiles = affinity_tiles<decltype(zero)>(a); });
    const int64_t most = kFill / kThreads / (a.N > 0 ? a.N : 1);
    return tiles < most ? tiles : most > 1 ? most : 1;
  }

  static void forward(const WindowArgs& a, const Tensor&) {
    by_dtype_and_scale<kScales>(a, [&](auto zero, auto scale) { window_forward<decltype(zero), scale.value, true>(a); });
  }
  static void backward(WindowArgs a, const Tensor& x) {
    check_rows(a);
    if (a.count_parts == 0) a.count_parts = count_parts(a);  // where grad_a alone is wanted
    by_dtype_and_scale<kScales>(a, [&](auto zero, auto scale) {
      using T = decltype(zero);
      if (a.need_kernels()) gradients<T, scale.value>(a);
      if (a.grad_x.data) window_gather<T, true>(a, x);
    });
  }
  static void sum_parts(const WindowArgs& a) {
    const int64_t parts = a.shared_p ? a.N * a.count_parts : a.count_parts;
    const int64_t total = (a.shared_p ? 1 : a.N) * a.rank * a.G * a.group_logits();
    if (total == 0) return;
    by_dtype_and_scale<false>(a, [&](auto zero, auto) {
      using T = decltype(zero);
      launch(affinity_parts_kernel<T>, blocks_for(total, kPartLanes), kThreads, kThreads * sizeof(Accumulator<T>),
          current_stream(), a, parts, total);
    });
  }

 private:
  template <class T, int kR>
  static void gradients(const WindowArgs& a) {
    WindowGrid grid;
    grid.cells = cells_per_tile<T>(a, affinity_elements(a)), grid.columns = Divider(a.w);
    const size_t shared = affinity_elements(a) * grid.cells * sizeof(Accumulator<T>);
    launch(affinity_gradients_kernel<T, kR>, blocks_for(a.N * a.count_parts, 1), kThreads, shared, current_stream(), a, grid,
        affinity_tiles<T>(a));
  }
};

}  // namespace pyindexnet::cuda
