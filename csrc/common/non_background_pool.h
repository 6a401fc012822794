// SPDX-License-Identifier: Apache-2.0
// Arguments of non_background_pool, shared by CPU and CUDA. Equations and symbols: pyindexnet/reference/non_background_pool.py.
#pragma once
#include "index_cell.h"

namespace pyindexnet {

inline constexpr int kMaxWindows = 16;

struct PoolArgs {
  Image x, grad, out;     // out: y or grad_x; data null where it is not needed
  Image mask, grad_mask;  // c unused
  int64_t N = 0, C = 0, H = 0, W = 0;
  int64_t windows = 1, chunk = 1;  // number of window sizes, channels of each
  int64_t kernel_size[kMaxWindows] = {};
  double eps = 0;
  bool count_include_pad = false;
  DType dtype = DType::float32;
  bool channels_last = false;  // layout of out, and the one that the kernels vectorise for
};

}  // namespace pyindexnet
