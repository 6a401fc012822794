// SPDX-License-Identifier: Apache-2.0
// affinity_map and affinity_moments, CUDA kernels. Equations: csrc/common/encoding.h and pyindexnet/reference.
//
// Forward of the map: a thread owns a position and a slice of the channels; it holds both encodings of a channel in registers
// and adds up their products, and the slices of a position are added in shared memory, in order. x is read from memory once
// (windows overlap in the first-level cache); the encodings and their products are never written.
// Moments: a block per channel and rank, two passes over its positions, the second for the deviations from the channel's mean;
// then a thread per group combines its channels.
// Backward: a block per channel and rank writes the encodings' gradients to scratch memory (for stride 2 and rank 1, half of
// x); from it, a block per channel and rank sums the gradients of its kernels, a thread per pixel gathers grad_x, and a thread
// per kernel element adds the channels and samples that share it. Fixed orders of summation, no atomics.
#pragma once
#include "launch.h"  // before the others, see emulation.h

#include "../common/encoding.h"
#include "../common/host_device.h"
#include "numeric.cuh"

namespace pyindexnet::cuda {

// How launches are cut up.
struct EncodingPlan {
  Divider columns, channels, ranks;  // w, C, d
  Divider pixels_w, pixels_h;        // of x
  Divider tiles;                     // of positions, for the map
  Divider groups, group;             // groups of channels; channels of one
  int64_t per_group = 1;             // channels of a group
  double inverse_positions = 1;      // 1 / (h w): a division would call a subroutine
  double inverse_count = 1;          // 1 / (per_group h w)
  int slices = 1;                    // of the channels, for the map
  void* grads = nullptr;             // [N, C, d, e, h * w], accumulators: gradients of the encodings
  void* partial = nullptr;           // [N, C, d, e, k * k], accumulators; moments: [N, C, d, e, 2]
  void* means = nullptr;             // [N, groups, d, e], accumulators: backward of the moments
  int64_t total = 0;                 // threads
};

template <class T>
__device__ inline T* at(const Image& t, int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<T*>(t.data) + n * t.n + c * t.c + h * t.h + w * t.w;
}
template <class T>
__device__ inline T* at(const Strided5& t, int64_t n, int64_t c, int64_t r, int64_t i, int64_t j) {
  return static_cast<T*>(t.data) + t.at(n, c, r, i, j);
}

template <class A>
struct Encodings {
  A at[2];
};

// U and V of one channel, rank and position.
template <class T>
__device__ inline Encodings<Accumulator<T>> encode(
    const EncodingArgs& a, int64_t n, int64_t c, int64_t r, int64_t i, int64_t j) {
  using A = Accumulator<T>;
  Encodings<A> out{{0, 0}};
  const int64_t top = i * a.stride - a.before(), left = j * a.stride - a.before();
  for (int ty = 0; ty < a.k; ++ty) {
    if (top + ty < 0 || top + ty >= a.H) continue;
    const T* const x = at<T>(a.x, n, c, top + ty, 0);
    const T *const u = at<T>(a.kernels[0], n, c, r, ty, 0), *const v = at<T>(a.kernels[1], n, c, r, ty, 0);
    for (int tx = 0; tx < a.k; ++tx) {
      if (left + tx < 0 || left + tx >= a.W) continue;
      const A pixel = A(x[(left + tx) * a.x.w]);
      out.at[0] += pixel * A(u[tx * a.kernels[0].s[4]]), out.at[1] += pixel * A(v[tx * a.kernels[1].s[4]]);
    }
  }
  return out;
}

// f of one channel and rank: the identity without affine.
template <class T>
struct Activation {
  using A = Accumulator<T>;
  A factor[2], shift[2], slope;

  __device__ inline Activation(const EncodingArgs& a, int64_t n, int64_t c, int64_t r) : slope(1) {
    factor[0] = factor[1] = 1, shift[0] = shift[1] = 0;
    if (!a.affine.data) return;
    slope = A(a.slope);
    factor[0] = A(*at<T>(a.affine, n, c, r, 0, 0)), shift[0] = A(*at<T>(a.affine, n, c, r, 0, 1));
    factor[1] = A(*at<T>(a.affine, n, c, r, 1, 0)), shift[1] = A(*at<T>(a.affine, n, c, r, 1, 1));
  }
  __device__ inline A line(const Encodings<A>& encodings, int e) const { return encodings.at[e] * factor[e] + shift[e]; }
  __device__ inline A through(A line, A value) const { return line > 0 ? value : value * slope; }
};

inline constexpr int kParts = 16;  // of a sum over the threads of a block

// Values of shared memory that block_sums needs.
PYINDEXNET_HOST_DEVICE constexpr int sums_size(int values, int threads) {
  return values * (threads + kParts);
}

// Sums over the threads of a block, the same in all of them.
template <int kN, class A>
__device__ inline void block_sums(A (&values)[kN], A* shared) {
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  A* const parts = shared + kN * threads;
  __syncthreads();  // an earlier sum has been read
#pragma unroll
  for (int i = 0; i < kN; ++i) shared[i * threads + thread] = values[i];
  __syncthreads();  // every thread's values are there
  if (thread < kN * kParts) {
    const A* const from = shared + thread / kParts * threads;
    A sum = 0;
    for (int t = thread % kParts; t < threads; t += kParts) sum += from[t];
    parts[thread] = sum;
  }
  __syncthreads();  // every part is summed
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    values[i] = 0;
    for (int part = 0; part < kParts; ++part) values[i] += parts[i * kParts + part];
  }
}

// One block: a tile of positions of one sample and rank. Dynamic shared memory: a value per thread.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) encoding_map_kernel(const EncodingArgs a, const EncodingPlan plan) {
  using A = Accumulator<T>;
  PYINDEXNET_DYNAMIC_SHARED(A, sums);
  const int cells = static_cast<int>(blockDim.x) / plan.slices;
  const int cell = static_cast<int>(threadIdx.x) % cells, slice = static_cast<int>(threadIdx.x) / cells;
  int64_t n = blockIdx.x;
  int64_t position = plan.tiles.split(n) * cells + cell;
  const int64_t r = plan.ranks.split(n);
  const bool inside = position < a.h * a.w;
  int64_t i = inside ? position : 0;
  const int64_t j = plan.columns.split(i);
  A sum = 0;
  for (int64_t c = slice; c < a.C && inside; c += plan.slices) {
    const Encodings<A> encodings = encode<T>(a, n, c, r, i, j);
    const Activation<T> f(a, n, c, r);
    const A u = f.line(encodings, 0), v = f.line(encodings, 1);
    sum += f.through(u, u) * f.through(v, v);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (slice > 0 || !inside) return;  // no barrier follows
  for (int s = 1; s < plan.slices; ++s) sum += sums[s * cells + cell];
  *at<T>(a.a, n, r, i, j) = T(A(a.scale) * sum);
}

struct ChannelAt {
  int64_t n, c, r;
};
__device__ inline ChannelAt channel_of_block(const EncodingPlan& plan) {
  int64_t n = blockIdx.x;
  const int64_t r = plan.ranks.split(n), c = plan.channels.split(n);
  return {n, c, r};
}

// f(position, row, column, encodings) over a thread's share of the positions.
template <class T, class F>
__device__ inline void each_position(const EncodingArgs& a, const EncodingPlan& plan, const ChannelAt& at, F f) {
  for (int64_t p = threadIdx.x; p < a.h * a.w; p += blockDim.x) {
    int64_t i = p;
    const int64_t j = plan.columns.split(i);
    f(p, i, j, encode<T>(a, at.n, at.c, at.r, i, j));
  }
}

// One block: a channel and rank. partial[e] = (mean, sum of squared deviations).
template <class T>
__global__ void __launch_bounds__(kThreads, 1) encoding_moments_kernel(const EncodingArgs a, const EncodingPlan plan) {
  using A = Accumulator<T>;
  PYINDEXNET_DYNAMIC_SHARED(A, shared);
  const ChannelAt at = channel_of_block(plan);
  A mean[2] = {0, 0}, squares[2] = {0, 0};
  each_position<T>(a, plan, at, [&](int64_t, int64_t, int64_t, const Encodings<A>& encodings) {
    mean[0] += encodings.at[0], mean[1] += encodings.at[1];
  });
  block_sums(mean, shared);
  mean[0] *= A(plan.inverse_positions), mean[1] *= A(plan.inverse_positions);
  each_position<T>(a, plan, at, [&](int64_t, int64_t, int64_t, const Encodings<A>& encodings) {
    const A u = encodings.at[0] - mean[0], v = encodings.at[1] - mean[1];
    squares[0] += u * u, squares[1] += v * v;
  });
  block_sums(squares, shared);
  if (threadIdx.x > 0) return;  // no barrier follows
  A* const to = static_cast<A*>(plan.partial) + ((at.n * a.C + at.c) * a.d + at.r) * 4;
  to[0] = mean[0], to[1] = squares[0], to[2] = mean[1], to[3] = squares[1];
}

// One thread: an encoding of a group and rank.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) encoding_combine_kernel(const EncodingArgs a, const EncodingPlan plan) {
  using A = Accumulator<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= plan.total) return;  // no barrier follows
  int64_t n = index / 2;
  const int e = static_cast<int>(index % 2);
  const int64_t r = plan.ranks.split(n), g = plan.groups.split(n);
  const A positions = A(a.h * a.w);
  const A* const from = static_cast<const A*>(plan.partial) + ((n * a.C + g * plan.per_group) * a.d + r) * 4 + 2 * e;
  A mean = 0, squares = 0;
  for (int64_t c = 0; c < plan.per_group; ++c) mean += from[c * a.d * 4];
  mean *= positions * A(plan.inverse_count);
  if (plan.means) {
    static_cast<A*>(plan.means)[((n * a.groups + g) * a.d + r) * 2 + e] = mean;
    return;
  }
  for (int64_t c = 0; c < plan.per_group; ++c) {
    const A apart = from[c * a.d * 4] - mean;
    squares += from[c * a.d * 4 + 1] + positions * apart * apart;
  }
  *at<T>(a.moments, n, g, r, e, 0) = T(mean), *at<T>(a.moments, n, g, r, e, 1) = T(squares * A(plan.inverse_count));
}

// One block: a channel and rank. Writes the gradients of its encodings, and grad_affine.
template <class T, bool kMoments>
__global__ void __launch_bounds__(kThreads, 1) encoding_grads_kernel(const EncodingArgs a, const EncodingPlan plan) {
  using A = Accumulator<T>;
  PYINDEXNET_DYNAMIC_SHARED(A, shared);
  const ChannelAt own = channel_of_block(plan);
  const int64_t positions = a.h * a.w;
  A* const to = static_cast<A*>(plan.grads) + ((own.n * a.C + own.c) * a.d + own.r) * 2 * positions;
  if constexpr (kMoments) {
    int64_t g = own.c;
    plan.group.split(g);
    const A weight = A(plan.inverse_count);
    const A constant_u = A(*at<T>(a.moments, own.n, g, own.r, 0, 0)) * weight;
    const A constant_v = A(*at<T>(a.moments, own.n, g, own.r, 1, 0)) * weight;
    const A linear_u = A(*at<T>(a.moments, own.n, g, own.r, 0, 1)) * (2 * weight);
    const A linear_v = A(*at<T>(a.moments, own.n, g, own.r, 1, 1)) * (2 * weight);
    const A* const mean = static_cast<const A*>(plan.means) + ((own.n * a.groups + g) * a.d + own.r) * 2;
    each_position<T>(a, plan, own, [&](int64_t p, int64_t, int64_t, const Encodings<A>& encodings) {
      to[p] = constant_u + linear_u * (encodings.at[0] - mean[0]);
      to[positions + p] = constant_v + linear_v * (encodings.at[1] - mean[1]);
    });
  } else {
    const Activation<T> f(a, own.n, own.c, own.r);
    A sums[4] = {0, 0, 0, 0};
    each_position<T>(a, plan, own, [&](int64_t p, int64_t i, int64_t j, const Encodings<A>& encodings) {
      const A u = f.line(encodings, 0), v = f.line(encodings, 1), g = A(a.scale) * A(*at<T>(a.a, own.n, own.r, i, j));
      const A grad_u = f.through(u, g * f.through(v, v)), grad_v = f.through(v, g * f.through(u, u));
      sums[0] += grad_u * encodings.at[0], sums[1] += grad_u, sums[2] += grad_v * encodings.at[1], sums[3] += grad_v;
      to[p] = grad_u * f.factor[0], to[positions + p] = grad_v * f.factor[1];
    });
    if (!a.grad_affine.data) return;  // all threads leave
    block_sums(sums, shared);
    if (threadIdx.x > 0) return;  // no barrier follows
    *at<T>(a.grad_affine, own.n, own.c, own.r, 0, 0) = T(sums[0]);
    *at<T>(a.grad_affine, own.n, own.c, own.r, 0, 1) = T(sums[1]);
    *at<T>(a.grad_affine, own.n, own.c, own.r, 1, 0) = T(sums[2]);
    *at<T>(a.grad_affine, own.n, own.c, own.r, 1, 1) = T(sums[3]);
  }
}

// One block: a channel and rank. A thread owns a tap and a slice of the positions; the slices are added in shared memory, in
// order. Dynamic shared memory: two values per thread.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) encoding_kernels_kernel(const EncodingArgs a, const EncodingPlan plan) {
  using A = Accumulator<T>;
  PYINDEXNET_DYNAMIC_SHARED(A, sums);
  const auto [n, c, r] = channel_of_block(plan);
  const int64_t positions = a.h * a.w, channel = (n * a.C + c) * a.d + r;
  const int taps = a.k * a.k, threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int slices = taps < threads ? threads / taps : 1, own = taps < threads ? thread % taps : thread;
  const A* const grads = static_cast<const A*>(plan.grads) + channel * 2 * positions;
  A* const to = static_cast<A*>(plan.partial) + channel * 2 * taps;
  for (int begin = 0; begin < taps; begin += threads) {
    const int t = begin + own, slice = taps < threads ? thread / taps : 0;
    A u = 0, v = 0;
    for (int64_t p = slice; p < positions && t < taps && slice < slices; p += slices) {
      int64_t i = p;
      const int64_t j = plan.columns.split(i);
      const int64_t y = i * a.stride - a.before() + t / a.k, x = j * a.stride - a.before() + t % a.k;
      if (y < 0 || y >= a.H || x < 0 || x >= a.W) continue;
      const A pixel = A(*at<T>(a.x, n, c, y, x));
      u += pixel * grads[p], v += pixel * grads[positions + p];
    }
    sums[2 * thread] = u, sums[2 * thread + 1] = v;
    __syncthreads();  // every slice is summed
    if (slice == 0 && t < taps) {
      for (int s = 1; s < slices; ++s) u += sums[2 * (s * taps + own)], v += sums[2 * (s * taps + own) + 1];
      to[t] = u, to[taps + t] = v;
    }
    __syncthreads();  // and has been read
  }
}

// One thread: an element of grad_u or grad_v; `index` runs over (Nu, Cu, d, e, k * k).
template <class T>
__global__ void __launch_bounds__(kThreads, 1) encoding_reduce_kernel(
    const EncodingArgs a, const EncodingPlan plan, Divider elements, Divider kernel_channels, Divider taps) {
  using A = Accumulator<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= plan.total) return;  // no barrier follows
  int64_t nu = index;
  int64_t r = elements.split(nu);
  const int64_t element = r, cu = kernel_channels.split(nu);
  const int t = static_cast<int>(taps.split(r)), e = static_cast<int>(r % 2);
  r /= 2;
  if (!a.grads[e].data) return;
  const int64_t record = 2 * a.d * a.k * a.k;
  const int64_t n_end = a.Nu == 1 ? a.N : nu + 1, c_end = a.Cu == 1 ? a.C : cu + 1;
  A sum = 0;
  for (int64_t n = nu; n < n_end; ++n) {
    for (int64_t c = cu; c < c_end; ++c) sum += static_cast<const A*>(plan.partial)[(n * a.C + c) * record + element];
  }
  *at<T>(a.grads[e], nu, cu, r, t / a.k, t % a.k) = T(sum);
}

// One thread: a pixel of grad_x.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) encoding_gather_kernel(const EncodingArgs a, const EncodingPlan plan) {
  using A = Accumulator<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= plan.total) return;  // no barrier follows
  int64_t n = index, c = 0;
  if (a.channels_last) c = plan.channels.split(n);  // neighbouring threads touch neighbouring memory
  const int64_t x = plan.pixels_w.split(n), y = plan.pixels_h.split(n);
  if (!a.channels_last) c = plan.channels.split(n);
  const int64_t positions = a.h * a.w;
  const A* const grads = static_cast<const A*>(plan.grads) + (n * a.C + c) * a.d * 2 * positions;
  // Rows and columns fit into 32 bits, whose division is no subroutine.
  const int bottom = static_cast<int>(y + a.before()), right = static_cast<int>(x + a.before());
  A sum = 0;
  for (int ty = 0; ty < a.k; ++ty) {
    const int row = bottom - ty, i = row / a.stride;
    if (row < 0 || row % a.stride != 0 || i >= a.h) continue;
    for (int tx = 0; tx < a.k; ++tx) {
      const int column = right - tx, j = column / a.stride;
      if (column < 0 || column % a.stride != 0 || j >= a.w) continue;
      const A* grad = grads + i * a.w + j;
      for (int64_t r = 0; r < a.d; ++r, grad += 2 * positions) {
        sum += A(*at<T>(a.kernels[0], n, c, r, ty, tx)) * grad[0];
        sum += A(*at<T>(a.kernels[1], n, c, r, ty, tx)) * grad[positions];
      }
    }
  }
  *at<T>(a.grad_x, n, c, y, x) = T(sum);
}

}  // namespace pyindexnet::cuda
