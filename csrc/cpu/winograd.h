// SPDX-License-Identifier: Apache-2.0
// What csrc/cpu/winograd.cpp (checks, memory, threads) and csrc/cpu/isa/winograd.cpp (kernel) share.
#pragma once
#include <cstdint>

namespace pyindexnet {

inline constexpr int64_t kWinogradSide = 8;  // of an input tile; of an output tile: 9 - kernel_size
inline constexpr int64_t kWinogradPoints = kWinogradSide * kWinogradSide;
inline constexpr int64_t kWidestVector = 16;  // floats
// Between the planes of scratch maps, so that they do not all lie in the same sets of the first-level cache.
inline constexpr int64_t kWinogradSkew = 16;

// A map whose channels are neighbours in memory. Strides in elements.
struct ChannelsLast {
  void* data = nullptr;
  int64_t C = 0, n = 0, h = 0, w = 0;
};

struct WinogradArgs {
  ChannelsLast x[2];  // concatenated; the second may have no channels
  ChannelsLast y;
  const float* weight = nullptr;  // [64, C, padded], transformed
  const float* bias = nullptr;    // [padded]
  int64_t N = 0, H = 0, W = 0;
  bool half = false;   // maps are bfloat16, else float; all else is float
  int64_t padded = 0;  // output channels, rounded up to kWidestVector
  int64_t kernel_size = 0;
  float low = 0, high = 0;  // of the output
  // Items: a run of up to `block` tiles of one row of tiles; in order n, row, run.
  int64_t tile_rows = 0, tile_columns = 0, block = 0, runs = 0;
};

// Floats of scratch memory of one thread.
inline int64_t winograd_scratch(const WinogradArgs& a) {
  const int64_t channels = a.x[0].C + a.x[1].C;
  return kWinogradPoints * (a.block * (channels + a.padded) + 2 * kWinogradSkew) + channels;
}

}  // namespace pyindexnet
