// SPDX-License-Identifier: Apache-2.0
// Scratch memory of the functions of csrc/cpu/window_map.h, for the host side, which allocates it.
#pragma once
#include <algorithm>
#include <cstdint>

namespace pyindexnet {

inline constexpr int64_t kScratchBytes = 64;  // the widest vector, and the alignment

// Most elements, whatever the instruction set, that a call of plane_window_sums (width 0) or channel_window_sums needs.
inline int64_t window_scratch(int64_t H, int64_t W, int64_t kernel_size, int64_t rows, int64_t width, int64_t element_bytes) {
  const int64_t lanes = kScratchBytes / element_bytes;
  const int64_t r_h = std::min(kernel_size / 2, H - 1), r_w = std::min(kernel_size / 2, W - 1);
  if (width == 0) return (rows + 2 * r_h + lanes) * (W + 2 * lanes) + (r_w + W + lanes) * 2 * lanes;
  return (rows + 2 * r_h) * (W * width + 1) * lanes + (r_w + W) * width * lanes;
}

}  // namespace pyindexnet
