// SPDX-License-Identifier: Apache-2.0
// Host side of index_cell.cuh: which kernel, how wide, how many blocks. The vector kernels are taken where every tensor's
// strides and address permit; Along::any with one cell per thread serves everything else.
#pragma once
#include <type_traits>

#include "../common/index_cell_host.h"
#include "index_cell.cuh"

namespace pyindexnet::cuda {

// Cells per thread. Along the row, a row of the group's pixels is one 16-byte access (ratio 3: three smaller ones), so that
// neighbouring threads touch neighbouring bytes; large cells come in small groups, which keeps registers for occupancy.
template <class T, int kR, Along kAlong>
constexpr int group_size() {
  if (kAlong == Along::any) return 1;
  if (kAlong == Along::channel) return kR == 2 ? 4 : 2;
  return kR == 3 ? 2 : 16 / kR / static_cast<int>(sizeof(T));
}

// Strides of dimensions with one element are never used.
inline bool multiples(std::initializer_list<std::pair<int64_t, int64_t>> size_and_stride, int64_t of) {
  for (const auto& [size, stride] : size_and_stride) {
    if (size > 1 && stride % of != 0) return false;
  }
  return true;
}

template <class T>
bool aligned(const void* data, int64_t elements) {
  return reinterpret_cast<uintptr_t>(data) % (elements * sizeof(T)) == 0;
}

template <class Op, class T, int kR, Along kAlong>
bool fits(const CellArgs& a) {
  constexpr int kV = group_size<T, kR, kAlong>();
  constexpr bool kRow = kAlong == Along::row;
  constexpr int kLow = chunk_of<T>(kV), kHigh = kRow ? chunk_of<T>(kV * kR) : kLow;
  if (kRow ? a.w % kV != 0 || a.W != a.w * kR || a.H != a.h * kR : a.C % kV != 0) return false;
  const auto image_fits = [&](const Image& t, int64_t h, int64_t w, int64_t chunk) {
    if (!t.data) return true;
    const bool dense = kRow ? t.w == 1 || w == 1 : t.c == 1 || a.C == 1;
    return dense && aligned<T>(t.data, chunk) && multiples({{a.N, t.n}, {h, t.h}}, chunk) &&
           (kRow ? multiples({{a.C, t.c}}, chunk) : multiples({{w, t.w}}, chunk));
  };
  const auto map_fits = [&](const IndexMap& m) {
    if (!m.data || (!kRow && a.holistic)) return true;  // one value per cell: no vector
    const bool dense = kRow ? m.w == 1 || a.w == 1 : m.c == 1 || a.C == 1;
    return dense && aligned<T>(m.data, kLow) && multiples({{a.N, m.n}, {kR, m.k}, {a.h, m.h}}, kLow) &&
           (kRow ? multiples({{a.holistic ? 1 : a.C, m.c}}, kLow) : multiples({{a.w, m.w}}, kLow));
  };
  return image_fits(a.factor_high, a.H, a.W, kHigh) && image_fits(a.other_high, a.H, a.W, kHigh) &&
         image_fits(a.out_high, a.H, a.W, kHigh) && image_fits(a.factor_low, a.h, a.w, kLow) &&
         image_fits(a.other_low, a.h, a.w, kLow) && image_fits(a.out_low, a.h, a.w, kLow) && map_fits(a.logits) &&
         map_fits(a.grad_logits);
}

// Axes of the linear index, innermost first: columns, rows, channels; or channels, columns, rows.
inline Grid make_grid(const CellArgs& a, bool channels_inside, int64_t groups, int64_t channels) {
  Grid grid;
  grid.channels_inside = channels_inside;
  grid.inner = Divider(groups);
  grid.middle = Divider(channels_inside ? a.w : a.h);
  grid.outer = Divider(channels_inside ? a.h : channels);
  grid.total = a.N * groups * (channels_inside ? a.w * a.h : a.h * channels);
  return grid;
}

template <class Op, class T, int kR, Along kAlong>
void run_depthwise(const CellArgs& a) {
  constexpr int kV = group_size<T, kR, kAlong>();
  const bool channels_inside = kAlong == Along::any ? a.channels_last : kAlong == Along::channel;
  const Grid grid = make_grid(a, channels_inside, (channels_inside ? a.C : a.w) / kV, a.C);
  launch(depthwise_kernel<Op, T, kR, kV, kAlong>, blocks_for(grid.total, kThreads), kThreads, 0, current_stream(), a, grid);
}

template <class Op, class T, int kR, Along kAlong>
void run_holistic(const CellArgs& a) {
  constexpr int kV = group_size<T, kR, kAlong>();
  Grid grid;
  if constexpr (kAlong == Along::row) {
    // As many channels per thread as leave the device full: each saves reading and normalising the map once more.
    const int64_t chunk = std::clamp<int64_t>(a.N * a.C * a.h * (a.w / kV) / kFill, 1, 16);
    grid = make_grid(a, false, a.w / kV, (a.C + chunk - 1) / chunk);
    grid.chunk = chunk;
  } else {
    grid = make_grid(a, true, a.C / kV, a.C);
  }
  launch(holistic_kernel<Op, T, kR, kV, kAlong>, blocks_for(grid.total, kThreads), kThreads, 0, current_stream(), a, grid);
}

template <class Op, class T, int kR, Along kAlong>
void run_holistic_backward_rows(const CellArgs& a) {
  constexpr int kV = group_size<T, kR, kAlong>();
  const Grid grid = make_grid(a, false, a.w / kV, 1);
  const unsigned slices = static_cast<unsigned>(std::min<int64_t>(kSlices, a.C));
  const size_t shared = a.grad_logits.data ? sizeof(Accumulator<T>) * kR * kR * kV * slices * 32 : 0;
  launch(holistic_backward_rows_kernel<Op, T, kR, kV, kAlong>, blocks_for(grid.total, 32), dim3(32, slices), shared,
      current_stream(), a, grid);
}

template <class Op, class T, int kR>
void run_holistic_backward_channels(const CellArgs& a) {
  constexpr int kV = group_size<T, kR, Along::channel>();
  const Grid grid = make_grid(a, true, 1, a.C);
  int lanes = 1;
  while (lanes < 32 && lanes * kV < a.C) lanes *= 2;
  launch(holistic_backward_channels_kernel<Op, T, kR, kV, Along::channel>, blocks_for(grid.total, kThreads / lanes), kThreads,
      0, current_stream(), a, grid, lanes);
}

template <class Op, class T, int kR>
void run_ratio(const CellArgs& a) {
  // float64 is for checking gradients: it takes the kernels for any strides, which halves what is compiled.
  constexpr bool kVectors = !std::is_same_v<T, double>;
  if constexpr (kVectors) {
    if (!a.channels_last && fits<Op, T, kR, Along::row>(a)) {
      if (!a.holistic) return run_depthwise<Op, T, kR, Along::row>(a);
      if constexpr (Op::backward) {
        return run_holistic_backward_rows<Op, T, kR, Along::row>(a);
      } else {
        return run_holistic<Op, T, kR, Along::row>(a);
      }
    }
    if (a.channels_last && fits<Op, T, kR, Along::channel>(a)) {
      if (!a.holistic) return run_depthwise<Op, T, kR, Along::channel>(a);
      if constexpr (Op::backward) {
        return run_holistic_backward_channels<Op, T, kR>(a);
      } else {
        return run_holistic<Op, T, kR, Along::channel>(a);
      }
    }
  }
  if constexpr (Op::backward) {
    if (a.holistic) return run_holistic_backward_rows<Op, T, kR, Along::any>(a);
  }
  run_depthwise<Op, T, kR, Along::any>(a);
}

template <class Op, class T>
void run_dtype(const CellArgs& a) {
  if (a.ratio == 2) return run_ratio<Op, T, 2>(a);
  if (a.ratio == 3) return run_ratio<Op, T, 3>(a);
  run_ratio<Op, T, 4>(a);
}

// What csrc/common/index_cell_host.h asks of a device.
struct Device {
  static DeviceGuard guard(const torch::stable::Tensor& x) { return DeviceGuard(x.get_device_index()); }

  template <CellOp kOp>
  static void run(const CellArgs& a) {
    using Op = OpOf<bits_of(kOp)>;
    if (a.N == 0) return;
    switch (a.dtype) {
      case DType::float64:
        return run_dtype<Op, double>(a);
      case DType::float32:
        return run_dtype<Op, float>(a);
      case DType::float16:
        return run_dtype<Op, torch::headeronly::Half>(a);
      case DType::bfloat16:
        return run_dtype<Op, torch::headeronly::BFloat16>(a);
    }
  }
};

}  // namespace pyindexnet::cuda
