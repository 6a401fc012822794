// SPDX-License-Identifier: Apache-2.0
// Host side of window.cuh: tiles, chunks, blocks.
#pragma once
#include "../common/window_host.h"
#include "window.cuh"

namespace pyindexnet::cuda {

// Cells of a tile, a power of two: neighbours fill a memory transaction, and `elements` of each fit into the shared memory that
// needs no opt-in, with room for several blocks.
template <class T>
int cells_per_tile(const WindowArgs& a, int64_t elements) {
  const int64_t bytes = elements * sizeof(Accumulator<T>);
  int cells = 64;
  while (cells > 1 && (cells * bytes > 24576 || cells >= 2 * a.h * a.w)) cells /= 2;
  return cells;
}

template <class T>
WindowGrid window_grid(const WindowArgs& a, int64_t copies, bool split_channels, int64_t& blocks) {
  WindowGrid grid;
  grid.cells = cells_per_tile<T>(a, copies * a.group_logits());
  const int64_t tiles = (a.h * a.w + grid.cells - 1) / grid.cells;
  // Chunks of channels repeat the normalisation: only as many as fill the device, of 16 channels at least.
  const int64_t blocks_now = tiles * a.G * a.N, wanted = split_channels ? kFill / kThreads / blocks_now : 1;
  const int64_t chunk = wanted > 1 ? (a.M + wanted - 1) / wanted : a.M;
  grid.chunk = chunk < 16 ? (a.M < 16 ? a.M : 16) : chunk;
  const int64_t chunks = (a.M + grid.chunk - 1) / grid.chunk;
  grid.tiles = Divider(tiles), grid.chunks = Divider(chunks), grid.groups = Divider(a.G), grid.columns = Divider(a.w);
  blocks = blocks_now * chunks;
  return grid;
}

template <class T, int kR, bool kAffinity>
void window_forward(const WindowArgs& a) {
  int64_t blocks = 0;
  const WindowGrid grid = window_grid<T>(a, 1, true, blocks);
  const size_t shared = a.taps() * kR * kR * grid.cells * sizeof(Accumulator<T>);
  launch(window_forward_kernel<T, kR, kAffinity>, blocks_for(blocks, 1), kThreads, shared, current_stream(), a, grid);
}

template <class T, int kR>
void window_kernels(const WindowArgs& a) {
  int64_t blocks = 0;
  const WindowGrid grid = window_grid<T>(a, 2, false, blocks);
  const size_t shared = 2 * a.taps() * kR * kR * grid.cells * sizeof(Accumulator<T>);
  launch(window_kernels_kernel<T, kR>, blocks_for(blocks, 1), kThreads, shared, current_stream(), a, grid);
}

template <class T, bool kAffinity>
void window_gather(const WindowArgs& a, const Tensor& x) {
  using A = Accumulator<T>;
  const int64_t subs = a.scale * a.scale, cells = a.h * a.w, pixels = a.H * a.W;
  Statistics<A>* statistics = nullptr;
  Tensor memory = empty_vector(x);
  if (a.normalization >= Normalization::softmax) {
    using torch::headeronly::ScalarType;
    const int64_t total = a.N * a.G * subs * cells;
    const std::array<int64_t, 1> size{2 * total};
    memory =
        torch::stable::empty({size.data(), size.size()}, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float,
            std::nullopt, x.device(), std::nullopt, std::nullopt);
    statistics = static_cast<Statistics<A>*>(memory.mutable_data_ptr());
    launch(window_statistics_kernel<T, kAffinity>, blocks_for(total, kThreads), kThreads, 0, current_stream(), a, statistics,
        Divider(cells), Divider(a.w), Divider(subs), Divider(a.G), total);
  }
  const int64_t chunks = (a.M + kGatherChannels - 1) / kGatherChannels, total = a.N * a.G * chunks * pixels;
  const int64_t inner = a.channels_last ? chunks : pixels, outer = a.channels_last ? pixels : chunks;
  launch(window_gather_kernel<T, kAffinity>, blocks_for(total, kThreads), kThreads, 0, current_stream(), a,
      static_cast<const Statistics<A>*>(statistics), Divider(inner), Divider(outer), Divider(a.W), Divider(a.G), total);
}

// f(value of the dtype, integral constant of the scale); kScales: whether the operator has sub-positions.
template <bool kScales, class F>
void by_dtype_and_scale(const WindowArgs& a, F f) {
  const auto by_scale = [&](auto zero) {
    if constexpr (kScales) {
      if (a.scale == 2) return f(zero, std::integral_constant<int, 2>{});
      if (a.scale == 3) return f(zero, std::integral_constant<int, 3>{});
      if (a.scale == 4) return f(zero, std::integral_constant<int, 4>{});
    }
    f(zero, std::integral_constant<int, 1>{});
  };
  switch (a.dtype) {
    case DType::float64:
      return by_scale(double{});
    case DType::float32:
      return by_scale(float{});
    case DType::float16:
      return by_scale(torch::headeronly::Half{});
    case DType::bfloat16:
      return by_scale(torch::headeronly::BFloat16{});
  }
}

inline void check_rows(const WindowArgs& a) {
  constexpr int64_t kMostRows = (int64_t{1} << 31) - 16;  // rows and columns of the gather fit into 32 bits
  STD_TORCH_CHECK(a.H < kMostRows && a.W < kMostRows, "pyindexnet: an axis of x has too many elements for one launch");
}

// What csrc/common/window_host.h asks of a device.
template <bool kScales>
struct WindowDevice {
  static DeviceGuard guard(const torch::stable::Tensor& x) { return DeviceGuard(x.get_device_index()); }

  static void forward(const WindowArgs& a, const Tensor&) {
    by_dtype_and_scale<kScales>(a, [&](auto zero, auto scale) { window_forward<decltype(zero), scale.value, false>(a); });
  }
  static void backward(const WindowArgs& a, const Tensor& x) {
    check_rows(a);
    by_dtype_and_scale<kScales>(a, [&](auto zero, auto scale) {
      using T = decltype(zero);
      if (a.grad_logits.data) window_kernels<T, scale.value>(a);
      if (a.grad_x.data) window_gather<T, false>(a, x);
    });
  }
};

}  // namespace pyindexnet::cuda
