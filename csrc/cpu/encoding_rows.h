// SPDX-License-Identifier: Apache-2.0
// affinity_map and affinity_moments, CPU: between tensors and the scratch memory of csrc/cpu/encoding_core.h. Rows of x lose
// their dtype, layout and stride there, and rows of grad_x get them back. Compiled once per instruction set.
#pragma once
#include "encoding_core.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

template <class T>
class EncodingRows : protected EncodingCore<typename Accumulate<T>::type> {
 protected:
  using A = typename Accumulate<T>::type;
  using Core = EncodingCore<A>;
  using V = Vec<A>;
  using Core::a_, Core::pitch_, Core::plane, Core::row_, Core::stride_, Core::w_;
  static constexpr int L = V::size;
  static constexpr int64_t kMargin = EncodingWork::kMargin;
  using Core::Core;

  struct Block {
    int64_t n, c, channels, band, first, rows;  // rows of positions
  };

  static A number(const T* p) { return load_lanes(p, 1, 1).v[0]; }
  static A number(const Strided5& t, int64_t i0, int64_t i1, int64_t i2, int64_t i3, int64_t i4) {
    return number(static_cast<const T*>(t.data) + t.at(i0, i1, i2, i3, i4));
  }
  static void put(T* p, A value) { store_lanes(p, 1, 1, V(value)); }
  static T* pixel(const Image& t, int64_t n, int64_t c, int64_t h, int64_t w) {
    return static_cast<T*>(t.data) + n * t.n + c * t.c + h * t.h + w * t.w;
  }
  PYINDEXNET_INLINE static V get(const T* p, int64_t stride, int64_t count) {
    if (count >= L && stride == 1) return load(p);
    return load_lanes(p, stride, static_cast<int>(count < L ? count : L));
  }
  PYINDEXNET_INLINE static void put(T* p, int64_t stride, int64_t count, V value) {
    if (count >= L && stride == 1) return store(p, value);
    store_lanes(p, stride, static_cast<int>(count < L ? count : L), value);
  }

  // --- between tensors and scratch memory ------------------------------------------------------------------------------------

  // Rows [top, top + rows) of x in the block's channels, 0 outside the image and in the margins.
  void stage(const Block& b, int64_t top, int64_t rows) const {
    for (int64_t y = 0; y < rows; ++y) {
      const bool inside = top + y >= 0 && top + y < a_.H;
      if (inside && w_.block > 1) {
        stage_pixels(b, top + y, y * row_);
      }
      for (int64_t e = 0; e < b.channels; ++e) {
        A* const to = plane(e) + y * row_;
        if (inside && w_.block == 1) stage_row(pixel(a_.x, b.n, b.c + e, top + y, 0), to);
        for (int q = 0; q < stride_; ++q) {
          A* const phase = to + q * pitch_;
          const int64_t begin = inside ? kMargin + count_of(q) : 0;
          if (inside) zero(phase, 0, kMargin);
          zero(phase, begin, pitch_);
        }
      }
    }
  }
  // Columns of x whose remainder is q.
  int64_t count_of(int q) const { return (a_.W - q + stride_ - 1) / stride_; }
  static void zero(A* p, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) p[j] = 0;
  }

  void stage_row(const T* from, A* to) const {
    if (a_.x.w == 1 && stride_ == 1) return split_row<1>(from, to);
    if (a_.x.w == 1 && stride_ == 2) return split_row<2>(from, to);
    if (a_.x.w == 1 && stride_ == 3) return split_row<3>(from, to);
    if (a_.x.w == 1 && stride_ == 4) return split_row<4>(from, to);
    rest_of_row(from, to, 0);
  }
  // Columns of each remainder from number `begin` on, lane by lane.
  void rest_of_row(const T* from, A* to, int64_t begin) const {
    for (int q = 0; q < stride_; ++q) {
      const int64_t count = count_of(q);
      for (int64_t j = begin; j < count; j += L) {
        const int64_t left = count - j;
        store_lanes(to + q * pitch_ + kMargin + j, 1, static_cast<int>(left < L ? left : L),
            get(from + (j * stride_ + q) * a_.x.w, stride_ * a_.x.w, left));
      }
    }
  }
  template <int R>
  void split_row(const T* from, A* to) const {
    int64_t j = 0;
    for (; R * (j + L) <= a_.W; j += L) {
      V in[R], out[R];
      for (int q = 0; q < R; ++q) in[q] = load(from + R * j + q * L);
      if constexpr (R == 1) {
        out[0] = in[0];
      } else {
        deinterleave<R>(in, out);
      }
      for (int q = 0; q < R; ++q) store(to + q * pitch_ + kMargin + j, out[q]);
    }
    rest_of_row(from, to, j);
  }
  template <int R>
  void join_row(const A* from, T* to, int64_t count) const {
    int64_t j = 0;
    for (; R * (j + L) <= count; j += L) {
      V in[R], out[R];
      for (int q = 0; q < R; ++q) in[q] = load(from + q * pitch_ + kMargin + j);
      if constexpr (R == 1) {
        out[0] = in[0];
      } else {
        interleave<R>(in, out);
      }
      for (int q = 0; q < R; ++q) store(to + R * j + q * L, out[q]);
    }
    rest_to_row(from, to, 1, j);
  }
  void rest_to_row(const A* from, T* to, int64_t step, int64_t begin) const {
    for (int q = 0; q < stride_; ++q) {
      const int64_t count = count_of(q);
      for (int64_t j = begin; j < count; j += L) {
        put(to + (j * stride_ + q) * step, stride_ * step, count - j, load(from + q * pitch_ + kMargin + j));
      }
    }
  }
  void unstage_row(const A* from, T* to, int64_t step) const {
    if (step == 1 && stride_ == 1) return join_row<1>(from, to, a_.W);
    if (step == 1 && stride_ == 2) return join_row<2>(from, to, a_.W);
    if (step == 1 && stride_ == 3) return join_row<3>(from, to, a_.W);
    if (step == 1 && stride_ == 4) return join_row<4>(from, to, a_.W);
    rest_to_row(from, to, step, 0);
  }

  // A square of vectors, its rows and lanes exchanged: each round rotates the bits of (row, lane) by one.
  PYINDEXNET_INLINE static void transpose(V (&m)[L]) {
    for (int round = 1; round < L; round *= 2) {
      V next[L];
      for (int i = 0; i < L / 2; ++i) {
        const V pair[2] = {m[i], m[i + L / 2]};
        V out[2];
        interleave<2>(pair, out);
        next[2 * i] = out[0], next[2 * i + 1] = out[1];
      }
      for (int i = 0; i < L; ++i) m[i] = next[i];
    }
  }

  // A row of pixels whose channels are neighbours, into (or from) the planes of the block.
  void stage_pixels(const Block& b, int64_t y, int64_t offset) const {
    each_square(b, [&](int q, int64_t j, int64_t e, int64_t columns, int64_t channels) PYINDEXNET_LAMBDA_INLINE {
      const T* from = pixel(a_.x, b.n, b.c + e, y, j * stride_ + q);
      V m[L];
      for (int l = 0; l < L; ++l) m[l] = l < columns ? get(from + l * stride_ * a_.x.w, 1, channels) : V(0);
      transpose(m);
      for (int l = 0; l < L && l < channels; ++l) store(plane(e + l) + offset + q * pitch_ + kMargin + j, m[l]);
    });
  }
  void unstage_pixels(const Block& b, int64_t y, int64_t offset) const {
    each_square(b, [&](int q, int64_t j, int64_t e, int64_t columns, int64_t channels) PYINDEXNET_LAMBDA_INLINE {
      T* to = pixel(a_.grad_x, b.n, b.c + e, y, j * stride_ + q);
      V m[L];
      for (int l = 0; l < L; ++l) m[l] = l < channels ? load(plane(e + l) + offset + q * pitch_ + kMargin + j) : V(0);
      transpose(m);
      for (int l = 0; l < L && l < columns; ++l) put(to + l * stride_ * a_.grad_x.w, 1, channels, m[l]);
    });
  }
  template <class F>
  PYINDEXNET_INLINE void each_square(const Block& b, F f) const {
    for (int q = 0; q < stride_; ++q) {
      const int64_t count = count_of(q);
      for (int64_t j = 0; j < count; j += L) {
        for (int64_t e = 0; e < b.channels; e += L) f(q, j, e, count - j, b.channels - e);
      }
    }
  }
};

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
