// SPDX-License-Identifier: Apache-2.0
// The pass over cells of the indexed operators, CUDA. Equations: csrc/common/index_cell.h, pyindexnet/reference/index_cell.py.
// A thread owns a group of kV cells, neighbours along the row (contiguous tensors) or along the channels (channels_last), so
// that every access is one vector. Sums over the channels of a shared map are combined in a fixed order, without atomics.
#pragma once
#include "launch.h"  // before index_normalization.h, see emulation.h

#include "../common/index_cell.h"
#include "../common/index_normalization.h"
#include "numeric.cuh"

namespace pyindexnet::cuda {

// A CellOp as a type: nvcc 13 writes a host stub that does not compile for a kernel with a template argument of class type.
template <int kBits>
struct OpOf {
  static constexpr bool factor_high = kBits & 1, factor_low = kBits & 2, other_high = kBits & 4, other_low = kBits & 8,
                        out_high = kBits & 16, out_low = kBits & 32, backward = other_high || other_low;
};
constexpr int bits_of(CellOp op) {
  return op.factor_high | op.factor_low << 1 | op.other_high << 2 | op.other_low << 3 | op.out_high << 4 | op.out_low << 5;
}

// The axis along which a group's cells are neighbours. any: one cell and any strides.
enum class Along { row, channel, any };

// How a linear group index falls apart, innermost axis first; the outermost is N.
struct Grid {
  Divider inner, middle, outer;
  int64_t total = 0;             // groups
  int64_t chunk = 1;             // channels per thread, for maps that channels share
  bool channels_inside = false;  // innermost axis of Along::any: channels, else columns
};

// A group: its first cell (i, j) of channel c. With a chunk, `c` counts chunks.
struct Place {
  int64_t n, c, i, j;
};

template <int kV, Along kAlong>
__device__ inline Place locate(const Grid& grid, int64_t index) {
  const int64_t inner = grid.inner.split(index) * kV, middle = grid.middle.split(index), outer = grid.outer.split(index);
  const bool channels_inside = kAlong == Along::any ? grid.channels_inside : kAlong == Along::channel;
  if (channels_inside) return {index, inner, outer, middle};
  return {index, outer, middle, inner};
}

template <class T>
__device__ inline T* at(const Image& image, const Place& p, int scale) {
  return static_cast<T*>(image.data) + p.n * image.n + p.c * image.c + p.i * scale * image.h + p.j * scale * image.w;
}

template <class T>
__device__ inline T* at(const IndexMap& map, const Place& p) {
  return static_cast<T*>(map.data) + p.n * map.n + p.c * map.c + p.i * map.h + p.j * map.w;
}

// Positions of the cell inside the image, a bit each. Groups along the row are only made of complete cells.
template <int kR, Along kAlong>
__device__ inline unsigned present_positions(const CellArgs& a, const Place& p) {
  if constexpr (kAlong == Along::row) return all_present<kR * kR>();
  const int64_t rows = a.H - p.i * kR, columns = a.W - p.j * kR;
  unsigned present = 0;
#pragma unroll
  for (int k = 0; k < kR * kR; ++k) present |= k / kR < rows && k % kR < columns ? 1u << k : 0u;
  return present;
}

__device__ inline bool has(unsigned present, int k) {
  return (present >> k) & 1u;
}

// --- the pixels of a group: out[k][v] is position k of cell v; absent positions load as 0 and are not stored ---------------

template <int kR, int kV, Along kAlong, class T>
__device__ inline void load_pixels(T (&out)[kR * kR][kV], const T* from, const Image& image, unsigned present) {
#pragma unroll
  for (int dy = 0; dy < kR; ++dy) {
    const T* row = from + dy * image.h;
    if constexpr (kAlong == Along::row) {
      T pixels[kV * kR];
#pragma unroll
      for (int e = 0; e < kV * kR; ++e) pixels[e] = T(0.0f);
      if (has(present, dy * kR)) load_vector(pixels, row);
#pragma unroll
      for (int e = 0; e < kV * kR; ++e) out[dy * kR + e % kR][e / kR] = pixels[e];
    } else {
#pragma unroll
      for (int dx = 0; dx < kR; ++dx) {
        const int k = dy * kR + dx;
#pragma unroll
        for (int v = 0; v < kV; ++v) out[k][v] = T(0.0f);
        if (has(present, k)) load_vector(out[k], row + dx * image.w);
      }
    }
  }
}

template <int kR, int kV, Along kAlong, class T>
__device__ inline void store_pixels(T* to, const T (&in)[kR * kR][kV], const Image& image, unsigned present) {
#pragma unroll
  for (int dy = 0; dy < kR; ++dy) {
    T* row = to + dy * image.h;
    if constexpr (kAlong == Along::row) {
      T pixels[kV * kR];
#pragma unroll
      for (int e = 0; e < kV * kR; ++e) pixels[e] = in[dy * kR + e % kR][e / kR];
      if (has(present, dy * kR)) store_vector(row, pixels);
    } else {
#pragma unroll
      for (int dx = 0; dx < kR; ++dx) {
        if (has(present, dy * kR + dx)) store_vector(row + dx * image.w, in[dy * kR + dx]);
      }
    }
  }
}

// --- one group and one channel (or vector of channels) of the images --------------------------------------------------------

template <class Op, class T, int kR, int kV, Along kAlong>
struct Group {
  static constexpr int kK = kR * kR;
  using V = Lanes<Accumulator<T>, kV>;
  T factor_high[kK][kV], factor_low[kV], other_high[kK][kV], other_low[kV];

  // `other` is only needed for the gradient of the logits.
  __device__ inline void load(const CellArgs& a, const Place& p, unsigned present, bool with_other) {
    if constexpr (Op::factor_high) {
      load_pixels<kR, kV, kAlong>(factor_high, at<T>(a.factor_high, p, kR), a.factor_high, present);
    }
    if constexpr (Op::factor_low) load_vector(factor_low, at<T>(a.factor_low, p, 1));
    if constexpr (Op::other_high) {
      if (with_other) load_pixels<kR, kV, kAlong>(other_high, at<T>(a.other_high, p, kR), a.other_high, present);
    }
    if constexpr (Op::other_low) {
      if (with_other) load_vector(other_low, at<T>(a.other_low, p, 1));
    }
  }

  __device__ inline V factor(int k) const {
    if constexpr (Op::factor_high && Op::factor_low) return V(factor_high[k]) + V(factor_low);
    if constexpr (Op::factor_high) return V(factor_high[k]);
    return V(factor_low);
  }

  // What position k adds to the gradient of the normalised map.
  __device__ inline V slope(int k, unsigned present) const {
    if (!has(present, k)) return V(0);
    if constexpr (Op::other_high) return factor(k) * V(other_high[k]);
    return factor(k) * V(other_low);
  }

  // out_high_k = z_k factor_k, out_low = sum_k z_k factor_k. kZ = 1: one weight for all lanes.
  template <int kZ>
  __device__ inline void weigh_and_store(
      const CellArgs& a, const Place& p, unsigned present, const Lanes<Accumulator<T>, kZ> (&z)[kK]) const {
    T high[kK][kV], low[kV];
    V sum(0);
#pragma unroll
    for (int k = 0; k < kK; ++k) {
      const V f = factor(k);
#pragma unroll
      for (int v = 0; v < kV; ++v) {
        const Accumulator<T> weighed = z[k].at[kZ == 1 ? 0 : v] * f.at[v];
        if constexpr (Op::out_high) high[k][v] = T(weighed);
        if constexpr (Op::out_low) sum.at[v] += has(present, k) ? weighed : Accumulator<T>(0);
      }
    }
    if constexpr (Op::out_high) {
      if (a.out_high.data) store_pixels<kR, kV, kAlong>(at<T>(a.out_high, p, kR), high, a.out_high, present);
    }
    if constexpr (Op::out_low) {
#pragma unroll
      for (int v = 0; v < kV; ++v) low[v] = T(sum.at[v]);
      if (a.out_low.data) store_vector(at<T>(a.out_low, p, 1), low);
    }
  }
};

// kZ neighbouring cells of a map, as stored.
template <int kK, int kZ, class T>
__device__ inline void load_map(T (&out)[kK][kZ], const CellArgs& a, const Place& p) {
  const T* map = at<T>(a.logits, p);
#pragma unroll
  for (int k = 0; k < kK; ++k) load_vector(out[k], map + k * a.logits.k);
}

template <int kK, int kZ, class T>
__device__ inline void store_map_gradient(
    const CellArgs& a, const Place& p, const Lanes<Accumulator<T>, kZ> (&d)[kK], unsigned present) {
  T* to = at<T>(a.grad_logits, p);
#pragma unroll
  for (int k = 0; k < kK; ++k) {
    T out[kZ];
#pragma unroll
    for (int v = 0; v < kZ; ++v) out[v] = T(has(present, k) ? d[k].at[v] : Accumulator<T>(0));
    store_vector(to + k * a.grad_logits.k, out);
  }
}

// --- kernels
// ------------------------------------------------------------------------------------------------------------------

// One thread per group of cells of one channel (kV channels along channels); forward and backward of maps per channel.
template <class Op, class T, int kR, int kV, Along kAlong>
__global__ void __launch_bounds__(kThreads, 1) depthwise_kernel(const CellArgs a, const Grid grid) {
  constexpr int kK = kR * kR;
  using V = Lanes<Accumulator<T>, kV>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= grid.total) return;  // no barrier follows
  const Place p = locate<kV, kAlong>(grid, index);
  const unsigned present = present_positions<kR, kAlong>(a, p);
  const bool with_grad = Op::backward && a.grad_logits.data;

  T logits[kK][kV];
  load_map<kK, kV, T>(logits, a, p);
  Group<Op, T, kR, kV, kAlong> group;
  group.load(a, p, present, with_grad);

  V z[kK];
#pragma unroll
  for (int k = 0; k < kK; ++k) z[k] = V(logits[k]);
  if constexpr (Op::backward) {
    V d[kK];
#pragma unroll
    for (int k = 0; k < kK; ++k) d[k] = with_grad ? group.slope(k, present) : V(0);
    normalize_vjp(z, d, a.normalization, present);
    if (with_grad) store_map_gradient<kK, kV, T>(a, p, d, present);
  } else {
    normalize(z, a.normalization, present);
  }
  group.weigh_and_store(a, p, present, z);
}

// z of a group's cells under a map that all channels share.
template <int kK, int kZ, class T>
__device__ inline void shared_weights(Lanes<Accumulator<T>, kZ> (&z)[kK], const CellArgs& a, const Place& p, unsigned present) {
  T logits[kK][kZ];
  load_map<kK, kZ, T>(logits, a, p);
#pragma unroll
  for (int k = 0; k < kK; ++k) z[k] = Lanes<Accumulator<T>, kZ>(logits[k]);
  normalize(z, a.normalization, present);
}

// One thread per group and chunk of channels; forward of shared maps.
template <class Op, class T, int kR, int kV, Along kAlong>
__global__ void __launch_bounds__(kThreads, 1) holistic_kernel(const CellArgs a, const Grid grid) {
  constexpr int kK = kR * kR, kZ = kAlong == Along::row ? kV : 1;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= grid.total) return;  // no barrier follows
  Place p = locate<kV, kAlong>(grid, index);
  const unsigned present = present_positions<kR, kAlong>(a, p);
  int64_t channels = 1;
  if constexpr (kAlong == Along::row) {
    p.c *= grid.chunk;
    channels = a.C - p.c < grid.chunk ? a.C - p.c : grid.chunk;
  }
  Group<Op, T, kR, kV, kAlong> group;
  group.load(a, p, present, false);  // on its way while the weights are computed
  Lanes<Accumulator<T>, kZ> z[kK];
  shared_weights<kK, kZ, T>(z, a, p, present);
  for (;;) {
    Group<Op, T, kR, kV, kAlong> next = group;
    const Place here = p;
    const bool more = --channels > 0;
    ++p.c;
    if (more) next.load(a, p, present, false);
    group.weigh_and_store(a, here, present, z);
    if (!more) return;
    group = next;
  }
}

// Backward of shared maps, cells along the row. A block owns 32 groups; warp s sums the channels s, s + slices, ... of each,
// the partial sums meet in shared memory, then one thread per cell applies J^T. Dynamic shared memory: K * kV * slices * 32.
template <class Op, class T, int kR, int kV, Along kAlong>
__global__ void __launch_bounds__(kThreads, 1) holistic_backward_rows_kernel(const CellArgs a, const Grid grid) {
  constexpr int kK = kR * kR, kLanes = 32;
  using A = Accumulator<T>;
  using V = Lanes<A, kV>;
  PYINDEXNET_DYNAMIC_SHARED(A, partial);  // [K][kV][slices][32]
  const int lane = threadIdx.x, slice = threadIdx.y, slices = blockDim.y;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kLanes, index = first + lane;
  const bool with_grad = a.grad_logits.data;

  V d[kK];
#pragma unroll
  for (int k = 0; k < kK; ++k) d[k] = V(0);
  if (index < grid.total) {
    Place p = locate<kV, kAlong>(grid, index);
    const unsigned present = present_positions<kR, kAlong>(a, p);
    V z[kK];
    shared_weights<kK, kV, T>(z, a, p, present);
    for (p.c = slice; p.c < a.C; p.c += slices) {
      Group<Op, T, kR, kV, kAlong> group;
      group.load(a, p, present, with_grad);
      if (with_grad) {
#pragma unroll
        for (int k = 0; k < kK; ++k) d[k] = d[k] + group.slope(k, present);
      }
      group.weigh_and_store(a, p, present, z);
    }
  }
  if (!with_grad) return;  // the same for all threads of the grid

#pragma unroll
  for (int k = 0; k < kK; ++k) {
#pragma unroll
    for (int v = 0; v < kV; ++v) partial[((k * kV + v) * slices + slice) * kLanes + lane] = d[k].at[v];
  }
  __syncthreads();
  const int thread = slice * kLanes + lane, threads = slices * kLanes;
  for (int sum = thread; sum < kK * kV * kLanes; sum += threads) {
    A* column = partial + sum / kLanes * slices * kLanes + sum % kLanes;  // touched by this thread alone
    A total = column[0];
    for (int s = 1; s < slices; ++s) total += column[s * kLanes];
    column[0] = total;
  }
  __syncthreads();
  for (int cell = thread; cell < kV * kLanes; cell += threads) {
    const int v = cell % kV;
    if (first + cell / kV >= grid.total) return;  // no barrier follows
    Place p = locate<kV, kAlong>(grid, first + cell / kV);
    p.j += v;
    const unsigned present = present_positions<kR, kAlong>(a, p);
    T logits[kK][1];
    load_map<kK, 1, T>(logits, a, p);
    Lanes<A, 1> z[kK], sums[kK];
#pragma unroll
    for (int k = 0; k < kK; ++k) {
      z[k] = Lanes<A, 1>(logits[k]);
      sums[k].at[0] = partial[(k * kV + v) * slices * kLanes + cell / kV];
    }
    normalize_vjp(z, sums, a.normalization, present);
    store_map_gradient<kK, 1, T>(a, p, sums, present);
  }
}

// Backward of shared maps, cells along the channels. `lanes` neighbouring threads (a power of two, within a warp) own a cell
// and share its channels; their sums meet in shuffles.
template <class Op, class T, int kR, int kV, Along kAlong>
__global__ void __launch_bounds__(kThreads, 1) holistic_backward_channels_kernel(const CellArgs a, const Grid grid, int lanes) {
  constexpr int kK = kR * kR;
  using A = Accumulator<T>;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;  // of the cell
  const bool with_grad = a.grad_logits.data, inside = index < grid.total;
  Place p = locate<1, kAlong>(grid, inside ? index : 0);
  p.c = 0;
  const unsigned present = present_positions<kR, kAlong>(a, p);

  Lanes<A, 1> z[kK], d[kK];
#pragma unroll
  for (int k = 0; k < kK; ++k) d[k] = Lanes<A, 1>(0);
  if (inside) {
    shared_weights<kK, 1, T>(z, a, p, present);
    for (p.c = lane * kV; p.c < a.C; p.c += lanes * kV) {
      Group<Op, T, kR, kV, kAlong> group;
      group.load(a, p, present, with_grad);
      if (with_grad) {
#pragma unroll
        for (int k = 0; k < kK; ++k) {
          const Lanes<A, kV> slope = group.slope(k, present);
#pragma unroll
          for (int v = 0; v < kV; ++v) d[k].at[0] += slope.at[v];
        }
      }
      group.weigh_and_store(a, p, present, z);
    }
  }
  if (!with_grad) return;  // the same for all threads of the grid

  for (int distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int k = 0; k < kK; ++k) d[k].at[0] += __shfl_xor_sync(0xffffffffu, d[k].at[0], distance);
  }
  if (!inside) return;  // no shuffle follows
  p.c = 0;
  T logits[kK][1];
  load_map<kK, 1, T>(logits, a, p);
#pragma unroll
  for (int k = 0; k < kK; ++k) z[k] = Lanes<A, 1>(logits[k]);
  normalize_vjp(z, d, a.normalization, present);
  if (lane == 0) store_map_gradient<kK, 1, T>(a, p, d, present);
}

}  // namespace pyindexnet::cuda
