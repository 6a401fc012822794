// SPDX-License-Identifier: Apache-2.0
// Gradients of the affinity map and of its generator, CUDA. Equations: csrc/common/window.h.
// A block owns every count_parts-th tile of cells of a sample, with all groups: the gradient of the tile's logits stays in
// shared memory, gives the tile's grad_a, and is added to the block's part of grad_p; a second kernel adds the parts up.
#pragma once
#include "window.cuh"

namespace pyindexnet::cuda {

// Dynamic shared memory, in accumulators: (2 * k * k * S + 2 * d) * cells.
template <class T, int kR>
__global__ void __launch_bounds__(kThreads, 1)
    affinity_gradients_kernel(const WindowArgs a, const WindowGrid grid, int64_t tiles) {
  using A = Accumulator<T>;
  const int cells = grid.cells, rows = a.k * a.k * kR * kR, rank = a.rank;
  PYINDEXNET_DYNAMIC_SHARED(A, d);         // [k * k][S][cells], then the logits in the same order
  A* const map = d + 2 * rows * cells;     // [d][cells]
  A* const grad_map = map + rank * cells;  // [d][cells]: each element is one thread's alone
  WindowTile tile;
  tile.n = blockIdx.x / a.count_parts, tile.m = 0, tile.m_end = a.M;
  const int64_t part = blockIdx.x % a.count_parts;
  A* const out = a.parts ? static_cast<A*>(a.parts) + (tile.n * a.count_parts + part) * rank * a.G * rows : nullptr;
  for (int64_t index = part; index < tiles; index += a.count_parts) {
    tile.first = index * cells;
    tile.cells = a.h * a.w - tile.first < cells ? a.h * a.w - tile.first : cells;
    for (int e = threadIdx.x; e < rank * cells; e += blockDim.x) {
      const int cell = e % cells;
      const auto [i, j] = cell_at(grid, tile, cell);
      const T* from = static_cast<const T*>(a.a.data) + tile.n * a.a.n + e / cells * a.a.d + i * a.a.h + j * a.a.w;
      map[e] = cell < tile.cells ? A(*from) : A(0);
    }
    for (tile.g = 0; tile.g < a.G; ++tile.g) {
      logits_gradient<T, kR, true>(a, grid, tile, d, d + rows * cells);  // its barrier is that of the map, too
      const T* p = static_cast<const T*>(a.p.data) + tile.n * a.p.n + tile.g * rows * a.p.c;
      for (int e = threadIdx.x; a.grad_a.data && e < rank * cells; e += blockDim.x) {
        const int cell = e % cells;
        A sum = tile.g ? grad_map[e] : A(0);
        for (int row = 0; row < rows; ++row) sum += A(p[e / cells * a.p.d + row * a.p.c]) * d[row * cells + cell];
        grad_map[e] = sum;
        if (tile.g + 1 < a.G || cell >= tile.cells) continue;
        const auto [i, j] = cell_at(grid, tile, cell);
        T* to = static_cast<T*>(a.grad_a.data) + tile.n * a.grad_a.n + e / cells * a.grad_a.d + i * a.grad_a.h + j * a.grad_a.w;
        *to = T(sum);
      }
      for (int e = threadIdx.x; a.parts && e < rank * rows; e += blockDim.x) {
        const int row = e % rows, of_rank = e / rows;
        A* to = out + of_rank * a.G * rows + tile.g * rows + row;
        A sum = index == part ? A(0) : *to;
        for (int c = 0; c < cells; ++c) {
          const int cell = (c + row) & (cells - 1);  // neighbouring threads in different banks
          sum += map[of_rank * cells + cell] * d[row * cells + cell];
        }
        *to = sum;
      }
      __syncthreads();
    }
  }
}

inline constexpr int kPartLanes = 32;

// kPartLanes elements of grad_p per block; the warps take every so many of the `parts`. Dynamic shared memory: blockDim.x.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) affinity_parts_kernel(const WindowArgs a, int64_t parts, int64_t total) {
  using A = Accumulator<T>;
  PYINDEXNET_DYNAMIC_SHARED(A, sums);  // [warps][kPartLanes]
  const int lane = threadIdx.x % kPartLanes, slice = threadIdx.x / kPartLanes, slices = blockDim.x / kPartLanes;
  const int64_t channels = a.G * a.group_logits(), row = a.rank * channels;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPartLanes + lane, n = index / row, element = index % row;
  A sum = 0;
  if (index < total) {
    const A* part = static_cast<const A*>(a.parts) + n * parts * row + element;
    for (int64_t i = slice; i < parts; i += slices) sum += part[i * row];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (slice != 0 || index >= total) return;  // no barrier follows
  for (int i = 1; i < slices; ++i) sum += sums[i * kPartLanes + lane];
  T* to = static_cast<T*>(a.grad_p.data) + n * a.grad_p.n + element / channels * a.grad_p.d + element % channels * a.grad_p.c;
  *to = T(sum);
}

}  // namespace pyindexnet::cuda
