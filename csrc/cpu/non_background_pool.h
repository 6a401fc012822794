// SPDX-License-Identifier: Apache-2.0
// What csrc/cpu/non_background_pool.cpp (memory, threads) and csrc/cpu/isa/non_background_pool.cpp (kernels) share.
#pragma once
#include "../common/non_background_pool.h"

namespace pyindexnet {

// What one call of the kernel does, and what its items are. Scratch maps are dense, in accumulators.
enum class PoolStep : int32_t {
  weights,       // n: the mask as `weights`
  denominators,  // (n, window): v
  forward,       // PoolWork's: y
  gradients,     // PoolWork's: grad_x, and, for the gradient of the mask, sum_c x u and sum_c g y of the item's channels
  reduce,        // (n, window): grad_m of one window
  grad_mask      // n: their sum
};

struct PoolWork {
  PoolArgs args;
  void* weights = nullptr;  // [N, H, W]
  void* inverse = nullptr;  // v, [N, windows, H, W]
  void* partial = nullptr;  // [N, windows, groups, 2, H, W], for the gradient of the mask
  // Items of forward and gradients: `group` channels of a chunk and `rows` rows; in order n, window, group, rows.
  int64_t group = 1, groups = 1, rows = 1, bands = 1;
  int32_t width = 1;         // channels_last: vectors of channels at a time: 1, 2 or 4
  bool past_caches = false;  // a large output is not kept in a cache until it is read
};

}  // namespace pyindexnet
