// SPDX-License-Identifier: Apache-2.0
// non_background_pool, CUDA kernels. Equation and symbols: pyindexnet/reference/non_background_pool.py.
//
// Plan. A block takes a tile of the map, in one image, for a group of channels of one window size; all window sizes are one
// launch.
//   1. Once: the tile of the mask is summed, and v of every pixel of the tile stays in shared memory for all channels of the
//   group.
//   2. `planes` channels at a time: m x of the tile and its border, radius pixels wide, goes into shared memory (rows of a warp
//   are
//      runs of addresses); a thread per column, then a thread per row sums in place by csrc/common/window_sum.h: three
//      additions per element and direction, whatever the window; the row pitch is odd, so that neither direction has bank
//      conflicts (float32).
//   3. y = v sum goes out, coalesced.
// Bytes. The floor is x read and y written once: 2 N C H W elements, and the mask. This plan moves them once through DRAM. What
// exceeds the floor is traffic from L2: a pixel of a border is read by every tile whose border it is in, 1.0 times where the
// tile is the map (to 64 x 64, where TMP runs for images of 1024 x 1024), 2.3 to 2.9 times for window 31 on larger maps, at
// several times the bandwidth of DRAM; and the mask, once per group instead of once. Nothing else is written: no products, no
// averages. Backward: v of all pixels first (one small launch), for u needs it on the border; then u = S(v g) as above, grad_x
// = m u. For the gradient of the mask, y is computed again beside it (x is read anyway), sums over the channels of a group go
// into a map per group, in the order of the channels, and a last launch adds the groups and windows. No atomics. Windows that
// do not fit into shared memory (from about 95 pixels on maps as large): the same kernels with the tile, the whole plane then,
// in global scratch memory.
#pragma once
#include "../common/non_background_pool.h"
#include "../common/window_sum.h"
#include "numeric.cuh"

namespace pyindexnet::cuda {

struct PoolPlan {
  int tile_h, tile_w;
  Divider tiles_h, tiles_w, blocks, windows;  // of an item: blocks are groups, or 1
  int rows, pitch;                            // of a tile with its borders
  int planes;                                 // channels at a time
  int64_t group, groups;                      // channels of a block, blocks for a chunk of channels
  int64_t items;                              // tiles times blocks, windows, images; a block takes every gridDim.x-th
  void* scratch;                              // for the tiles, one per block; null: shared memory
  void* inverse;                              // v, [N, windows, H, W]; null: of a tile, in shared memory
  void* partial;                              // [N, windows, groups, 2, H, W], for the gradient of the mask
};

template <class T>
class PoolBlock {
  using A = Accumulator<T>;

  const PoolArgs& a_;
  const PoolPlan& p_;
  const int thread_ = threadIdx.x, threads_ = blockDim.x;
  A* cells_;
  A* own_inverse_;
  int64_t n_, s_, group_;
  int first_h_, first_w_, count_h_, count_w_;  // the tile

 public:
  __device__ PoolBlock(const PoolArgs& a, const PoolPlan& p, A* shared) : a_(a), p_(p) {
    const int64_t tile = static_cast<int64_t>(p.planes) * p.rows * p.pitch;
    cells_ = p.scratch ? static_cast<A*>(p.scratch) + blockIdx.x * tile : shared;
    own_inverse_ = shared + tile;
  }

  __device__ void select(int64_t item) {
    first_w_ = static_cast<int>(p_.tiles_w.split(item)) * p_.tile_w;
    first_h_ = static_cast<int>(p_.tiles_h.split(item)) * p_.tile_h;
    group_ = p_.blocks.split(item);
    s_ = p_.windows.split(item);
    n_ = item;
    const int left_h = static_cast<int>(a_.H) - first_h_, left_w = static_cast<int>(a_.W) - first_w_;
    count_h_ = left_h < p_.tile_h ? left_h : p_.tile_h;
    count_w_ = left_w < p_.tile_w ? left_w : p_.tile_w;
  }

  // --- one item of each kernel --------------------------------------------------------------------------------------------

  __device__ void denominators() {
    sums(1, [&](int, int i, int j) { return mask(i, j); });
    A* const v = inverse();
    each_pixel([&](int i, int j, const A* sum) { v[pixel(i, j)] = denominator(i, j, *sum); });
  }

  __device__ void forward() {
    const bool own = !p_.inverse;
    const A* const v = inverse();
    if (own) {
      sums(1, [&](int, int i, int j) { return mask(i, j); });
      each_pixel([&](int i, int j, const A* sum) { own_inverse_[own_pixel(i, j)] = denominator(i, j, *sum); });
    }
    each_batch([&](int64_t c, int planes) {
      sums(planes, [&](int e, int i, int j) { return read(a_.x, c + e, i, j) * mask(i, j); });
      each_pixel([&](int i, int j, const A* sum) {
        const A scale = own ? own_inverse_[own_pixel(i, j)] : v[pixel(i, j)];
        for (int e = 0; e < planes; ++e) write(a_.out, c + e, i, j, sum[e * plane_size()] * scale);
      });
    });
  }

  __device__ void gradients() {
    const A* const v = inverse();
    A *const xu = partial(group_, 0), *const gy = partial(group_, 1);
    const bool need_x = a_.out.data, need_mask = p_.partial;
    bool first = true;
    each_batch([&](int64_t c, int planes) {
      sums(planes, [&](int e, int i, int j) { return read(a_.grad, c + e, i, j) * v[pixel(i, j)]; });
      each_pixel([&](int i, int j, const A* u) {
        if (need_x) {
          const A m = mask(i, j);
          for (int e = 0; e < planes; ++e) write(a_.out, c + e, i, j, m * u[e * plane_size()]);
        }
        if (need_mask) {
          A total = first ? A(0) : xu[pixel(i, j)];
          for (int e = 0; e < planes; ++e) total += read(a_.x, c + e, i, j) * u[e * plane_size()];
          xu[pixel(i, j)] = total;
        }
      });
      if (need_mask) {
        sums(planes, [&](int e, int i, int j) { return read(a_.x, c + e, i, j) * mask(i, j); });
        each_pixel([&](int i, int j, const A* sum) {
          const A scale = v[pixel(i, j)];
          A total = first ? A(0) : gy[pixel(i, j)];
          for (int e = 0; e < planes; ++e) total += read(a_.grad, c + e, i, j) * (sum[e * plane_size()] * scale);
          gy[pixel(i, j)] = total;
        });
      }
      first = false;
    });
  }

  // The totals of all windows gather in the first map of partial sums, each pixel in the hands of one thread.
  __device__ void grad_mask() {
    A* const total = partial(0, 0);
    for (s_ = 0; s_ < a_.windows; ++s_) {
      const A* const v = inverse();
      const A* const maps = partial(0, 0);
      const auto over_groups = [&](int64_t at, int which) {
        A sum = 0;
        for (int64_t g = 0; g < p_.groups; ++g) sum += maps[(2 * g + which) * a_.H * a_.W + at];
        return sum;
      };
      sums(1, [&](int, int i, int j) { return v[pixel(i, j)] * over_groups(pixel(i, j), 1); });
      each_pixel([&](int i, int j, const A* sum) {
        const int64_t at = pixel(i, j);
        A value = over_groups(at, 0) - *sum;
        if (s_ > 0) value += total[at];
        total[at] = value;
        if (s_ + 1 == a_.windows) write(a_.grad_mask, 0, i, j, finite(value));
      });
    }
  }

 private:
  // --- memory -------------------------------------------------------------------------------------------------------------

  __device__ A read(const Image& t, int64_t c, int i, int j) const {
    return static_cast<A>(static_cast<const T*>(t.data)[n_ * t.n + c * t.c + i * t.h + j * t.w]);
  }
  __device__ void write(const Image& t, int64_t c, int i, int j, A value) const {
    static_cast<T*>(t.data)[n_ * t.n + c * t.c + i * t.h + j * t.w] = static_cast<T>(value);
  }
  __device__ A mask(int i, int j) const { return read(a_.mask, 0, i, j); }
  __device__ int64_t pixel(int i, int j) const { return i * a_.W + j; }
  __device__ int own_pixel(int i, int j) const { return (i - first_h_) * p_.tile_w + j - first_w_; }
  __device__ int64_t plane_size() const { return static_cast<int64_t>(p_.rows) * p_.pitch; }
  __device__ A* inverse() const { return static_cast<A*>(p_.inverse) + (n_ * a_.windows + s_) * a_.H * a_.W; }
  __device__ A* partial(int64_t group, int64_t which) const {
    return static_cast<A*>(p_.partial) + (((n_ * a_.windows + s_) * p_.groups + group) * 2 + which) * a_.H * a_.W;
  }

  __device__ A denominator(int i, int j, A sum) const {
    const int64_t k = a_.kernel_size[s_];
    const A n = static_cast<A>(window_count(i, a_.H, k, a_.count_include_pad)) *
                static_cast<A>(window_count(j, a_.W, k, a_.count_include_pad));
    return inverse_of(sum + static_cast<A>(a_.eps) * n);
  }
  __device__ static A inverse_of(A value) { return cuda::inverse(value); }

  // A float16 holds no gradient of the order of 1 / eps.
  __device__ static A finite(A value) {
    if constexpr (std::is_same_v<T, torch::headeronly::Half>) {
      value = value > A(65504) ? A(65504) : value;
      value = value < A(-65504) ? A(-65504) : value;
    }
    return value;
  }

  // --- loops of the block -------------------------------------------------------------------------------------------------

  // f(first channel, number): the channels of the group.
  template <class F>
  __device__ void each_batch(F f) const {
    const int64_t begin = group_ * p_.group, end = begin + p_.group < a_.chunk ? begin + p_.group : a_.chunk;
    for (int64_t c = begin; c < end; c += p_.planes) {
      f(s_ * a_.chunk + c, static_cast<int>(end - c < p_.planes ? end - c : p_.planes));
    }
  }

  // f(i, j, sum): the pixels of the tile; the sum of plane e is sum[e * plane_size()]. A pixel belongs to one thread.
  template <class F>
  __device__ void each_pixel(F f) const {
    for (int y = thread_ / 32; y < count_h_; y += threads_ / 32) {
      for (int x = thread_ % 32; x < count_w_; x += 32) f(first_h_ + y, first_w_ + x, cells_ + int64_t{y} * p_.pitch + x);
    }
  }

  // cells <- window sums of value(plane, i, j).
  template <class F>
  __device__ void sums(int planes, F value) const {
    const int64_t k = a_.kernel_size[s_];
    const Reach<int> down(static_cast<int>(a_.H), k, first_h_, count_h_), along(static_cast<int>(a_.W), k, first_w_, count_w_);
    const int height = down.hi - down.lo, width = along.hi - along.lo;
    __syncthreads();  // what the last sums left has been read
    if (a_.channels_last) {
      for (int y = down.lo + thread_ / 32; y < down.hi; y += threads_ / 32) {
        for (int e = thread_ % 32; e < planes * width; e += 32) {
          const int plane = e % planes, x = along.lo + e / planes;
          cells_[plane * plane_size() + int64_t{y} * p_.pitch + x] = value(plane, down.top + y, along.top + x);
        }
      }
    } else {
      for (int row = thread_ / 32; row < planes * height; row += threads_ / 32) {
        const int plane = row / height, y = down.lo + row % height;
        A* const to = cells_ + plane * plane_size() + int64_t{y} * p_.pitch;
        for (int x = along.lo + thread_ % 32; x < along.hi; x += 32) to[x] = value(plane, down.top + y, along.top + x);
      }
    }
    __syncthreads();  // the tile is full
    for (int e = thread_; e < planes * width; e += threads_) {
      sum_line(down, count_h_, cells_ + e / width * plane_size() + along.lo + e % width, p_.pitch);
    }
    __syncthreads();  // its columns are summed
    for (int e = thread_; e < planes * count_h_; e += threads_) {
      sum_line(along, count_w_, cells_ + e / count_h_ * plane_size() + int64_t{e % count_h_} * p_.pitch, 1);
    }
    __syncthreads();  // its rows are
  }

  __device__ static void sum_line(const Reach<int>& reach, int n, A* line, int64_t stride) {
    const auto get = [=](int p) { return line[p * stride]; };
    const auto put = [=](int p, A sum) { line[p * stride] = sum; };
    window_sums<A>(reach.k, reach.lo, reach.hi, n, get, put, put);
  }
};

#define PYINDEXNET_POOL_KERNEL(NAME)                                                                           \
  template <class T>                                                                                           \
  __global__ void __launch_bounds__(kThreads, 2) pool_##NAME##_kernel(const PoolArgs a, const PoolPlan plan) { \
    PYINDEXNET_DYNAMIC_SHARED(Accumulator<T>, shared);                                                         \
    PoolBlock<T> block(a, plan, shared);                                                                       \
    for (int64_t item = blockIdx.x; item < plan.items; item += gridDim.x) {                                    \
      block.select(item);                                                                                      \
      block.NAME();                                                                                            \
    }                                                                                                          \
  }
PYINDEXNET_POOL_KERNEL(denominators)
PYINDEXNET_POOL_KERNEL(forward)
PYINDEXNET_POOL_KERNEL(gradients)
PYINDEXNET_POOL_KERNEL(grad_mask)
#undef PYINDEXNET_POOL_KERNEL

}  // namespace pyindexnet::cuda
