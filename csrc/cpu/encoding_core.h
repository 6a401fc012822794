// SPDX-License-Identifier: Apache-2.0
// affinity_map and affinity_moments, CPU: the sums over windows in scratch memory, for csrc/cpu/isa/encoding.cpp, which fills
// and empties it. Equations: csrc/common/encoding.h. Compiled once per instruction set; arithmetic in float, double for double.
#pragma once
#include "encoding.h"
#include "simd.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

// The work on scratch memory, free of storage dtypes.
template <class A>
class EncodingCore {
 protected:
  using V = Vec<A>;
  static constexpr int L = V::size;
  static constexpr int kColumns = 4;  // vectors of positions at a time
  static constexpr int kTaps = 6;     // of a row of the window at a time, in the sums for the gradients of the kernels
  static constexpr int64_t kMargin = EncodingWork::kMargin;

  const EncodingWork& w_;
  const EncodingArgs& a_;
  const int k_, stride_, taps_, d_;
  const int64_t pitch_, row_;  // of scratch memory, of a row of x in it
  const bool halo_;
  A *const x_, *const encodings_, *const kernels_;
  int64_t offset_[kMaxKernel];  // of tap column tx in a scratch row of x, from the position's column

  EncodingCore(const EncodingWork& work, bool halo, void* scratch)
      : w_(work),
        a_(work.args),
        k_(work.args.k),
        stride_(work.args.stride),
        taps_(k_ * k_),
        d_(static_cast<int>(work.args.d)),
        pitch_(work.pitch()),
        row_(work.args.stride * work.pitch()),
        halo_(halo),
        x_(static_cast<A*>(scratch)),
        encodings_(x_ + work.x_elements(true)),
        kernels_(encodings_ + work.encoding_elements()) {
    for (int tx = 0; tx < k_; ++tx) {
      const int64_t from = tx - a_.before() + 16 * stride_;  // above 0
      offset_[tx] = kMargin + from % stride_ * pitch_ + from / stride_ - 16;
    }
  }

  A* plane(int64_t e) const { return x_ + e * w_.x_plane(halo_); }
  const A* kernel(int64_t r, int e) const { return kernels_ + (2 * r + e) * taps_; }
  A* encodings(int64_t r, int e, int64_t row) const {
    return encodings_ + ((2 * r + e) * w_.encoding_rows() + row) * pitch_ + kMargin;
  }
  A* record(int64_t n, int64_t c, int64_t band, bool gradients) const {
    return static_cast<A*>(w_.partial) + ((n * a_.C + c) * w_.bands + band) * w_.record(gradients);
  }
  A& mean(int64_t n, int64_t g, int64_t r, int e) const {
    return static_cast<A*>(w_.means)[((n * a_.groups + g) * d_ + r) * 2 + e];
  }

  // Lanes from `count` on become 0.
  PYINDEXNET_INLINE static V keep(V a, int64_t count) {
    if (count >= L) return a;
    using Index = typename V::Index;
    constexpr Index lanes = make_indices<V>([](int l) { return l; }, std::make_index_sequence<L>{});
    return lanes < static_cast<decltype(lanes[0] + 0)>(count) ? a.v : V(0).v;
  }
  PYINDEXNET_INLINE static A total(V a) {
    A lanes[L];
    store(lanes, a);
    for (int half = L / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    return lanes[0];
  }

  // f(j, vectors) over the positions of a row; vectors is a constant.
  template <class F>
  PYINDEXNET_INLINE void each_column(F f) const {
    const int64_t end = (a_.w + L - 1) / L * L;
    int64_t j = 0;
    for (; j + kColumns * L <= end; j += kColumns * L) f(j, std::integral_constant<int, kColumns>{});
    for (; j + kColumns / 2 * L <= end; j += kColumns / 2 * L) f(j, std::integral_constant<int, kColumns / 2>{});
    for (; j < end; j += L) f(j, std::integral_constant<int, 1>{});
  }

  // Both encodings of B vectors of positions; `x`: the first row of their windows, at their column, without the offsets.
  template <int B>
  PYINDEXNET_INLINE void encode(const A* x, int64_t r, V (&u)[B], V (&v)[B]) const {
    const A *ku = kernel(r, 0), *kv = kernel(r, 1);
    for (int b = 0; b < B; ++b) u[b] = v[b] = V(0);
    for (int ty = 0; ty < k_; ++ty, x += row_) {
      for (int tx = 0; tx < k_; ++tx) {
        const A* const p = x + offset_[tx];
        const V cu(*ku++), cv(*kv++);
        for (int b = 0; b < B; ++b) {
          const V pixel = load(p + b * L);
          u[b] = u[b] + cu * pixel, v[b] = v[b] + cv * pixel;
        }
      }
    }
  }

  // out[e * K + t] += sums over rows of positions of an encoding's gradient times the pixels under K neighbouring taps.
  template <int K>
  void dots(const A* x, const A* grad_u, const A* grad_v, int64_t rows, const int64_t* offset, A* to_u, A* to_v) const {
    V u[K], v[K];
    for (int t = 0; t < K; ++t) u[t] = v[t] = V(0);
    for (int64_t i = 0; i < rows; ++i) {
      const A *const line = x + i * stride_ * row_, *const gu = grad_u + i * pitch_, *const gv = grad_v + i * pitch_;
      for (int64_t j = 0; j < a_.w; j += L) {
        const V a = load(gu + j), b = load(gv + j);
        for (int t = 0; t < K; ++t) {
          const V pixel = load(line + offset[t] + j);
          u[t] = u[t] + a * pixel, v[t] = v[t] + b * pixel;
        }
      }
    }
    for (int t = 0; t < K; ++t) to_u[t] = total(u[t]), to_v[t] = total(v[t]);
  }
  template <int K = kTaps>
  void dots_of(int count, const A* x, const A* gu, const A* gv, int64_t rows, const int64_t* offset, A* to_u, A* to_v) const {
    if (count == K) return dots<K>(x, gu, gv, rows, offset, to_u, to_v);
    if constexpr (K > 1) dots_of<K - 1>(count, x, gu, gv, rows, offset, to_u, to_v);
  }

  // A channel's sums for the kernels over `rows` rows, from those of its encodings' gradients from `first` on.
  void kernel_sums(const A* x, int64_t first, int64_t rows, A* record) const {
    const int parts = (k_ + kTaps - 1) / kTaps;
    for (int64_t r = 0; r < d_; ++r) {
      A *const to_u = record + 2 * r * taps_, *const to_v = to_u + taps_;
      for (int ty = 0; ty < k_; ++ty) {
        for (int part = 0; part < parts; ++part) {
          const int begin = k_ * part / parts, end = k_ * (part + 1) / parts, t = ty * k_ + begin;
          dots_of(end - begin, x + ty * row_, encodings(r, 0, first), encodings(r, 1, first), rows, offset_ + begin, to_u + t,
              to_v + t);
        }
      }
    }
  }

  // One row of grad_x, columns of equal remainder side by side as in the scratch rows of x. `y`: pixel row from position row
  // `first` (of the image), where the encodings' gradients begin; those outside the image are 0.
  void gather_row(A* out, int64_t y, int64_t first) const {
    for (int q = 0; q < stride_; ++q) {
      each_column([&](int64_t j, auto vectors) PYINDEXNET_LAMBDA_INLINE {
        constexpr int B = vectors;
        V sum[B];
        for (int b = 0; b < B; ++b) sum[b] = V(0);
        for (int ty = 0; ty < k_; ++ty) {
          const int64_t down = y + a_.before() - ty;
          if (down < 0 || down % stride_) continue;
          const int64_t row = down / stride_ - first;
          for (int tx = 0; tx < k_; ++tx) {
            const int64_t right = q + a_.before() - tx + 16 * stride_;  // above 0
            if (right % stride_) continue;
            const int64_t column = j + right / stride_ - 16;
            for (int64_t re = 0; re < 2 * d_; ++re) {
              const V factor(kernels_[re * taps_ + ty * k_ + tx]);
              const A* const grad = encodings(0, static_cast<int>(re), row) + column;
              for (int b = 0; b < B; ++b) sum[b] = sum[b] + factor * load(grad + b * L);
            }
          }
        }
        for (int b = 0; b < B; ++b) store(out + q * pitch_ + kMargin + j + b * L, sum[b]);
      });
    }
  }
};

// sum_c f_u f_v and its derivative for one channel and rank.
template <class A>
struct Activation {
  using V = Vec<A>;
  A factor[2] = {1, 1}, shift[2] = {0, 0}, slope = 1;
  bool affine = false;

  PYINDEXNET_INLINE V line(V a, int e) const { return affine ? V(factor[e]) * a + V(shift[e]) : a; }
  PYINDEXNET_INLINE V value(V line) const { return affine ? V(line.v > 0 ? line.v : line.v * slope) : line; }
  PYINDEXNET_INLINE V through(V line, V grad) const { return affine ? V(line.v > 0 ? grad.v : grad.v * slope) : grad; }
};

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
