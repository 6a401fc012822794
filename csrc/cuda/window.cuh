// SPDX-License-Identifier: Apache-2.0
// The dynamic-kernel operators, CUDA. Equations: csrc/common/window.h, pyindexnet/reference/window.py.
// Forward and gradient of the kernels: a block owns a tile of cells of one group, keeps their normalised kernels in shared
// memory, and its threads share them among all channels. Gradient of x: a thread owns a pixel in a few channels and gathers
// over the cells that read it; softmaxes are finished from the maximum and the sum of each kernel, which a pass over the logits
// leaves in memory (two numbers for k * k). Bytes: the forward reads x and the logits once from memory (windows overlap in the
// first-level cache) and writes y; no normalised or shuffled map exists. Fixed orders of summation, no atomics.
#pragma once
#include "launch.h"  // before index_normalization.h, see emulation.h

#include "../common/window.h"
#include "../common/window_normalization.h"
#include "window_logits.cuh"

namespace pyindexnet::cuda {

// How a launch is cut up.
struct WindowGrid {
  Divider tiles, chunks, groups;  // of blocks: tiles of cells innermost, then chunks of channels, groups, N
  Divider columns;                // of cells
  int cells = 1;                  // per tile
  int64_t chunk = 1;              // channels
};

// A thread's column of taps in shared memory.
template <class A>
struct SharedTaps {
  A* p;
  int64_t stride;
  __device__ inline Lanes<A, 1> get(int t) const {
    Lanes<A, 1> out;
    out.at[0] = p[t * stride];
    return out;
  }
  __device__ inline void set(int t, Lanes<A, 1> a) const { p[t * stride] = a.at[0]; }
};

struct WindowTile {
  int64_t n, g, first, cells;  // cells [first, first + cells) of the plane, in row-major order
  int64_t m, m_end;            // channels of the group
};

__device__ inline WindowTile window_tile(const WindowArgs& a, const WindowGrid& grid) {
  int64_t index = blockIdx.x;
  WindowTile tile;
  tile.first = grid.tiles.split(index) * grid.cells;
  const int64_t left = a.h * a.w - tile.first;
  tile.cells = left < grid.cells ? left : grid.cells;
  tile.m = grid.chunks.split(index) * grid.chunk;
  tile.m_end = tile.m + grid.chunk < a.M ? tile.m + grid.chunk : a.M;
  tile.g = grid.groups.split(index);
  tile.n = index;
  return tile;
}

// Row and column of a cell of the tile.
struct CellAt {
  int64_t i, j;
};
__device__ inline CellAt cell_at(const WindowGrid& grid, const WindowTile& tile, int cell) {
  int64_t i = tile.first + cell;
  const int64_t j = grid.columns.split(i);
  return {i, j};
}

// Raw logits of a tile: out[(t * S + s) * cells + cell], 0 where absent. Ends with a barrier.
template <class T, int kS, bool kAffinity>
__device__ inline void load_kernels(const WindowArgs& a, const WindowGrid& grid, const WindowTile& tile, Accumulator<T>* out) {
  const int cells = grid.cells, count = a.k * a.k * kS * cells;
  for (int e = threadIdx.x; e < count; e += blockDim.x) {
    const int cell = e % cells, row = e / cells, s = row % kS;
    const CellAt p = cell_at(grid, tile, cell);
    const bool present = cell < tile.cells && is_present(a, s, p.i, p.j);
    out[e] = present ? Logits<T, kAffinity>(a, tile.n, tile.g, s, p.i, p.j)(row / kS) : Accumulator<T>(0);
  }
  __syncthreads();
}

// One block: a tile of cells in a chunk of channels. Dynamic shared memory: k * k * S * cells.
template <class T, int kR, bool kAffinity>
__global__ void __launch_bounds__(kThreads, 1) window_forward_kernel(const WindowArgs a, const WindowGrid grid) {
  using A = Accumulator<T>;
  constexpr int kS = kR * kR;
  PYINDEXNET_DYNAMIC_SHARED(A, z);  // [k * k][S][cells]
  const WindowTile tile = window_tile(a, grid);
  const int cells = grid.cells, taps = a.k * a.k;
  load_kernels<T, kS, kAffinity>(a, grid, tile, z);
  if (a.normalization != Normalization::none) {
    for (int e = threadIdx.x; e < kS * cells; e += blockDim.x) {
      normalize_taps<Lanes<A, 1>>(SharedTaps<A>{z + e, kS * cells}, taps, a.normalization);
    }
    __syncthreads();
  }
  const int channels = static_cast<int>(tile.m_end - tile.m);
  const int inner = a.channels_last ? channels : cells;  // neighbouring threads touch neighbouring memory
  for (int64_t e = threadIdx.x; e < static_cast<int64_t>(channels) * cells; e += blockDim.x) {
    const int low = static_cast<int>(e % inner), high = static_cast<int>(e / inner), cell = a.channels_last ? high : low;
    const int64_t m = tile.m + (a.channels_last ? low : high);
    if (cell >= tile.cells) continue;
    const auto [i, j] = cell_at(grid, tile, cell);
    A sum[kS];
#pragma unroll
    for (int s = 0; s < kS; ++s) sum[s] = 0;
    const int64_t top = i * a.stride - a.before(), left = j * a.stride - a.before();
    for (int ty = 0; ty < a.k; ++ty) {
      if (top + ty < 0 || top + ty >= a.H) continue;
      for (int tx = 0; tx < a.k; ++tx) {
        if (left + tx < 0 || left + tx >= a.W) continue;
        const A pixel = A(*at<T>(a.x, tile.n, tile.g, m, top + ty, left + tx));
        const A* weight = z + (ty * a.k + tx) * kS * cells + cell;
#pragma unroll
        for (int s = 0; s < kS; ++s) sum[s] += weight[s * cells] * pixel;
      }
    }
#pragma unroll
    for (int s = 0; s < kS; ++s) {
      const int64_t h = i * kR + s / kR, w = j * kR + s % kR;
      if (h < a.P && w < a.Q) *at<T>(a.y, tile.n, tile.g, m, h, w) = T(sum[s]);
    }
  }
}

// Gradient of a tile's logits, d[(t * S + s) * cells + cell], all channels of the group: a thread sums the channels for a tap
// of a cell; then one thread per kernel applies J^T. `logits`: as much memory again. Ends with a barrier.
template <class T, int kR, bool kAffinity>
__device__ inline void logits_gradient(
    const WindowArgs& a, const WindowGrid& grid, const WindowTile& tile, Accumulator<T>* d, Accumulator<T>* logits) {
  using A = Accumulator<T>;
  constexpr int kS = kR * kR;
  const int cells = grid.cells, taps = a.k * a.k;
  if (a.normalization != Normalization::none) load_kernels<T, kS, kAffinity>(a, grid, tile, logits);
  for (int e = threadIdx.x; e < taps * cells; e += blockDim.x) {
    const int cell = e % cells, t = e / cells;
    const auto [i, j] = cell_at(grid, tile, cell);
    const int64_t h = i * a.stride - a.before() + t / a.k, w = j * a.stride - a.before() + t % a.k;
    A sum[kS];
#pragma unroll
    for (int s = 0; s < kS; ++s) sum[s] = 0;
    if (cell < tile.cells && h >= 0 && h < a.H && w >= 0 && w < a.W) {
      const T* x = at<T>(a.x, tile.n, tile.g, 0, h, w);
      const T* grad = at<T>(a.y, tile.n, tile.g, 0, i * kR, j * kR);
      for (int64_t m = 0; m < a.M; ++m, x += a.x.m, grad += a.y.m) {
        const A pixel = A(*x);
#pragma unroll
        for (int s = 0; s < kS; ++s) {
          if (kR == 1 || is_present(a, s, i, j)) sum[s] += pixel * A(grad[s / kR * a.y.h + s % kR * a.y.w]);
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kS; ++s) d[(t * kS + s) * cells + cell] = sum[s];
  }
  __syncthreads();
  if (a.normalization != Normalization::none) {
    for (int e = threadIdx.x; e < kS * cells; e += blockDim.x) {
      const SharedTaps<A> of_logits{logits + e, kS * cells}, of_d{d + e, kS * cells};
      normalize_vjp_taps<Lanes<A, 1>>(of_logits, of_d, taps, a.normalization);
    }
    __syncthreads();
  }
}

// One block: a tile of cells. Dynamic shared memory: 2 * k * k * S * cells.
template <class T, int kR>
__global__ void __launch_bounds__(kThreads, 1) window_kernels_kernel(const WindowArgs a, const WindowGrid grid) {
  using A = Accumulator<T>;
  constexpr int kS = kR * kR;
  PYINDEXNET_DYNAMIC_SHARED(A, d);  // [k * k][S][cells], then the logits in the same order
  const WindowTile tile = window_tile(a, grid);
  const int cells = grid.cells, rows = a.k * a.k * kS;
  logits_gradient<T, kR, false>(a, grid, tile, d, d + rows * cells);
  for (int e = threadIdx.x; e < rows * cells; e += blockDim.x) {
    const int cell = e % cells, row = e / cells, s = row % kS;
    const auto [i, j] = cell_at(grid, tile, cell);
    // Absent sub-positions have memory in the shuffled layout only, and get their 0.
    if (cell >= tile.cells || (a.dense && !is_present(a, s, i, j))) continue;
    *at<T>(a.grad_logits, tile.n, tile.g, row / kS, s, kR, i, j) = T(d[e]);
  }
}

// --- gradient of x ----------------------------------------------------------------------------------------------------

inline constexpr int kGatherChannels = 4;  // per thread

// Softmax of logit e: exp(e - top) * factor, of the sigmoid of e where that comes first.
template <class A>
struct Statistics {
  A top, factor;
};

// One thread per kernel; statistics[(n, g), s, cell].
template <class T, bool kAffinity>
__global__ void __launch_bounds__(kThreads, 1) window_statistics_kernel(const WindowArgs a,
    Statistics<Accumulator<T>>* statistics, Divider cells, Divider columns, Divider subs, Divider groups, int64_t total) {
  using A = Accumulator<T>;
  using V = Lanes<A, 1>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= total) return;  // no barrier follows
  int64_t rest = index, i = cells.split(rest);
  const int64_t j = columns.split(i);
  const int s = static_cast<int>(subs.split(rest));
  const int64_t g = groups.split(rest);
  Statistics<A> out{0, 0};
  if (is_present(a, s, i, j)) {
    const Logits<T, kAffinity> logits(a, rest, g, s, i, j);
    const bool unit = a.normalization == Normalization::sigmoid_softmax;
    out.top = logits(0);
    for (int64_t t = 1; t < a.taps() && !unit; ++t) {
      const A value = logits(t);
      out.top = out.top < value ? value : out.top;
    }
    V first;
    first.at[0] = out.top;
    if (unit) out.top = a.taps() == 1 ? sigmoid(first).at[0] : A(0);
    A sum = 0;
    for (int64_t t = 0; t < a.taps(); ++t) {
      V value;
      value.at[0] = logits(t);
      sum += exponential((unit ? sigmoid(value) : value).at[0] - out.top);
    }
    out.factor = inverse(sum);
  }
  statistics[index] = out;
}

template <class A>
__device__ inline A weight_of(A logit, Normalization how, const Statistics<A>& statistics) {
  Lanes<A, 1> value;
  value.at[0] = logit;
  if (how == Normalization::sigmoid || how == Normalization::sigmoid_softmax) value = sigmoid(value);
  if (how == Normalization::none || how == Normalization::sigmoid) return value.at[0];
  value.at[0] = exponential(value.at[0] - statistics.top) * statistics.factor;
  if (how == Normalization::softmax_sigmoid) value = sigmoid(value);
  return value.at[0];
}

// A pixel of x and kGatherChannels channels per thread; `inner` and `outer` split a linear index over pixels and chunks of
// channels, whichever neighbours in memory go inside.
template <class T, bool kAffinity>
__global__ void __launch_bounds__(kThreads, 1)
    window_gather_kernel(const WindowArgs a, const Statistics<Accumulator<T>>* statistics, Divider inner, Divider outer,
        Divider columns, Divider groups, int64_t total) {
  using A = Accumulator<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= total) return;  // no barrier follows
  int64_t rest = index;
  const int64_t first = inner.split(rest), second = outer.split(rest);
  int64_t u = a.channels_last ? second : first;
  const int64_t m = (a.channels_last ? first : second) * kGatherChannels, v = columns.split(u), g = groups.split(rest),
                n = rest;
  const int channels = static_cast<int>(a.M - m < kGatherChannels ? a.M - m : kGatherChannels);
  A sum[kGatherChannels];
#pragma unroll
  for (int c = 0; c < kGatherChannels; ++c) sum[c] = 0;
  const int subs = a.scale * a.scale;
  // Rows and columns fit into 32 bits, whose division is no subroutine.
  const int bottom = static_cast<int>(u + a.before()), right = static_cast<int>(v + a.before());
  for (int ty = 0; ty < a.k; ++ty) {
    const int row = bottom - ty, i = row / a.stride;
    if (row < 0 || row % a.stride != 0 || i >= a.h) continue;
    for (int tx = 0; tx < a.k; ++tx) {
      const int column = right - tx, j = column / a.stride;
      if (column < 0 || column % a.stride != 0 || j >= a.w) continue;
      for (int s = 0; s < subs; ++s) {
        if (!is_present(a, s, i, j)) continue;
        Statistics<A> of_kernel{0, 0};
        if (statistics) of_kernel = statistics[(((n * a.G + g) * subs + s) * a.h + i) * a.w + j];
        const A logit = Logits<T, kAffinity>(a, n, g, s, i, j)(ty * a.k + tx);
        const A weight = weight_of(logit, a.normalization, of_kernel);
        const T* grad = at<T>(a.y, n, g, m, i * a.scale + s / a.scale, j * a.scale + s % a.scale);
#pragma unroll
        for (int c = 0; c < kGatherChannels; ++c) {
          if (c < channels) sum[c] += weight * A(grad[c * a.y.m]);
        }
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kGatherChannels; ++c) {
    if (c < channels) *at<T>(a.grad_x, n, g, m + c, u, v) = T(sum[c]);
  }
}

}  // namespace pyindexnet::cuda
