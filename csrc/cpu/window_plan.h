// SPDX-License-Identifier: Apache-2.0
// How a call of a dynamic-kernel operator is cut into pieces on the CPU, and how much scratch memory a thread needs for one.
// Known to the host side (csrc/cpu/window_device.h) and to the kernels (csrc/cpu/window.h).
#pragma once
#include <cstdint>

#include "../common/window.h"

namespace pyindexnet {

// A work item is a band of rows and a tile of columns of one group: rows and columns of cells, of which there may be fewer than
// of x (odd sizes), so both grids are covered. A band is walked in strips, whose weights stay in the scratch memory.
struct WindowPlan {
  static constexpr int64_t kHalo =
      16;  // columns left and right of a tile: a multiple of every vector, and more than a window's half
  static constexpr int64_t kBlock = 8;  // channels at a time

  int64_t bands = 1, band_rows = 1, tiles = 1, tile = kHalo, strip = 1;
  bool channels = false;  // forward: a vector is a run of a group's channels
  int64_t groups = 1;     // of items; 1: an item has all groups, one after another

  // Whether neighbouring channels lie side by side, enough of them for most lanes of a vector not to be idle.
  static constexpr int64_t kFewestChannels = 8;
  static bool fits_channels(const WindowArgs& a) { return a.x.m == 1 && a.y.m == 1 && a.M >= kFewestChannels; }

  int64_t pitch() const { return tile + 2 * kHalo; }

  static int64_t padded(int64_t elements) { return (elements + kHalo - 1) / kHalo * kHalo; }

  // Sizes of the parts of the scratch memory, in accumulator elements.
  int64_t x_rows(const WindowArgs& a) const { return (strip - 1) * a.stride + a.k; }
  int64_t out_rows(const WindowArgs& a) const { return (strip - 1) * a.stride + (a.k > a.stride ? a.k : a.stride); }
  int64_t carried_rows(const WindowArgs& a) const { return a.k > a.stride ? a.k - a.stride : 0; }
  int64_t weight_elements(const WindowArgs& a) const { return strip * a.taps() * a.scale * a.scale * pitch(); }
  int64_t x_elements(const WindowArgs& a) const { return kBlock * x_rows(a) * a.stride * pitch(); }
  int64_t grad_elements(const WindowArgs& a) const { return kBlock * strip * a.scale * a.scale * pitch(); }
  int64_t out_elements(const WindowArgs& a) const { return kBlock * out_rows(a) * a.stride * pitch(); }
  int64_t carry_elements(const WindowArgs& a) const { return a.M * carried_rows(a) * a.stride * pitch(); }
  int64_t generator_elements(const WindowArgs& a) const { return padded((groups == 1 ? a.G : 1) * a.group_logits() * a.rank); }
  int64_t map_elements(const WindowArgs& a) const { return a.rank * pitch(); }
  int64_t map_gradient_elements(const WindowArgs& a) const { return a.G > 1 && a.rank ? band_rows * a.rank * pitch() : 0; }
  int64_t scratch_elements(const WindowArgs& a, bool backward) const {
    const int64_t affinity = generator_elements(a) + map_elements(a) + (backward ? map_gradient_elements(a) : 0);
    return window_elements(a, backward) + affinity;
  }
  // Without what the logits of low rank need.
  int64_t window_elements(const WindowArgs& a, bool backward) const {
    const int64_t forward = weight_elements(a) + x_elements(a);
    return backward ? forward + weight_elements(a) + grad_elements(a) + out_elements(a) + carry_elements(a) : forward;
  }
};

struct WindowRange {
  int64_t begin, end;
};

}  // namespace pyindexnet
