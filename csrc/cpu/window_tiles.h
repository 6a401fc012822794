// SPDX-License-Identifier: Apache-2.0
// What forward and backward of the dynamic-kernel operators share, CPU: a call's items, their scratch memory, rows of x and
// weights in it. csrc/cpu/window.h tells the plan.
#pragma once
#include <type_traits>

#include "../common/window_normalization.h"
#include "simd.h"
#include "window_affinity.h"
#include "window_plan.h"
#include "window_rows.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

// kR: scale. The stride is 1 where it is above 1.
template <class T, int kR>
class WindowTiles : protected WindowRows<T> {
 protected:
  using Rows = WindowRows<T>;
  using Rows::L, Rows::least, Rows::most, Rows::vectors;
  using typename Rows::A, typename Rows::V;
  static constexpr int kS = kR * kR;
  static constexpr int64_t kHalo = WindowPlan::kHalo;
  static constexpr bool kWide = kVectorBytes == 64;  // such a machine has twice the registers

  const WindowArgs& a_;
  const WindowPlan& p_;
  const int taps_;
  const int64_t pitch_, D_;
  A *const z_, *const x_, *const d_, *const grad_, *const out_, *const carry_;
  int64_t offset_[kMaxKernel * kMaxKernel];  // of each tap in the scratch rows of x
  int64_t shift_[kMaxKernel];                // tap column tx reads cell column + shift, in phase phase_[tx]
  int64_t phase_[kMaxKernel];
  bool stream_y_, stream_grad_x_, stream_grad_logits_;
  int64_t halo_;  // columns left and right of a tile that its windows reach, in whole vectors
  AffinityLogits<T> affinity_;

  struct Item {
    int64_t n, g, row, row_end, column, column_end;
  };

 public:
  WindowTiles(const WindowArgs& a, const WindowPlan& p, void* scratch)
      : a_(a),
        p_(p),
        taps_(static_cast<int>(a.taps())),
        pitch_(p.pitch()),
        D_(a.stride),
        z_(static_cast<A*>(scratch)),
        x_(z_ + p.weight_elements(a)),
        d_(x_ + p.x_elements(a)),
        grad_(d_ + p.weight_elements(a)),
        out_(grad_ + p.grad_elements(a)),
        carry_(out_ + p.out_elements(a)),
        affinity_(a, p, static_cast<A*>(scratch) + p.window_elements(a, a.need_kernels() || a.grad_x.data)) {
    int64_t reach = 0;
    for (int t = 0; t < a.k; ++t) {
      const int64_t column = t - a.before();
      shift_[t] = column >= 0 ? column / D_ : -((-column + D_ - 1) / D_);
      phase_[t] = column - shift_[t] * D_;
      const int64_t far = shift_[t] < 0 ? -shift_[t] : shift_[t];
      reach = far > reach ? far : reach;
    }
    for (int t = 0; t < taps_; ++t) offset_[t] = (t / a.k * D_ + phase_[t % a.k]) * pitch_ + kHalo + shift_[t % a.k];
    halo_ = (reach + L - 1) / L * L;
    const Planes &y = a.y, &x = a.grad_x;
    const Kernels& k = a.grad_logits;
    const int64_t planes = a.N * a.G * a.M;
    // Half lines of several channels in turns are several times slower past the caches than through them.
    const bool whole_lines = kR * kVectorBytes >= 64;
    stream_y_ = whole_lines && !x.data && !k.data && worth_streaming<T>(y.data, {y.n, y.g, y.m, y.h}, planes * a.P * a.Q);
    stream_grad_x_ = worth_streaming<T>(x.data, {x.n, x.g, x.m, x.h}, planes * a.H * a.W);
    stream_grad_logits_ =
        worth_streaming<T>(k.data, {k.n, k.g, k.t, k.sy, k.sx, k.h}, a.N * a.G * taps_ * kS * a.h * a.w) && !a.dense;
  }

 protected:
  // act(item) for every item of a range; ends with whatever was written past the caches.
  template <class Act>
  void each(WindowRange range, Act act) {
    for (int64_t index = range.begin; index < range.end; ++index) {
      const int64_t tile = index % p_.tiles, band = index / p_.tiles % p_.bands, plane = index / (p_.tiles * p_.bands);
      const Item item{plane / p_.groups, plane % p_.groups, band * p_.band_rows, (band + 1) * p_.band_rows, tile * p_.tile,
          (tile + 1) * p_.tile};
      if (a_.rank) affinity_.generate(item.n, item.g, p_.groups == 1 ? a_.G : 1);
      act(item);
    }
    if (stream_y_ || stream_grad_x_ || stream_grad_logits_) stream_fence();
  }

  static T* row(const Planes& t, const Item& at, int64_t m, int64_t h) {
    return static_cast<T*>(t.data) + at.n * t.n + at.g * t.g + m * t.m + h * t.h;
  }
  static T* row(const Kernels& t, const Item& at, int tap, int sy, int64_t i) {
    return static_cast<T*>(t.data) + at.n * t.n + at.g * t.g + tap * t.t + sy * t.sy + i * t.h;
  }

  // Raw logits of row i, cells [from, to): out[(t * kS + s) * pitch + cell - from]. Absent sub-positions read as 0.
  __attribute__((noinline)) void copy_logits(const Item& at, int64_t i, int64_t from, int64_t to, A* out) const {
    for (int t = 0; t < taps_; ++t) {
      for (int sy = 0; sy < kR; ++sy) {
        const T* p = row(a_.logits, at, t, sy, i);
        A* to_row = out + (t * kS + sy * kR) * pitch_;
        Rows::template copy_row<kR>(p, i * kR + sy < a_.P, a_.logits.sx, a_.logits.w, a_.Q, from, to, to_row, pitch_);
      }
    }
  }
  // Rows [first, first + rows) of x for channels m..: out[((channel * rows + row) * D + phase) * pitch].
  template <int kD>
  __attribute__((noinline)) void copy_x(const Item& at, int64_t m, int channels, int64_t first, int64_t rows) const {
    const int64_t from = at.column - halo_, to = at.column + vectors(at.column_end - at.column) * L + halo_;
    for (int b = 0; b < channels; ++b) {
      for (int64_t u = 0; u < rows; ++u) {
        const int64_t h = first + u;
        A* out = x_ + (b * rows + u) * kD * pitch_ + kHalo - halo_;
        Rows::template copy_row<kD>(
            row(a_.x, at, m + b, h), h >= 0 && h < a_.H, a_.x.w, kD * a_.x.w, a_.W, from, to, out, pitch_);
      }
    }
  }
  void copy_x(const Item& at, int64_t m, int channels, int64_t first, int64_t rows) const {
    if constexpr (kR == 1) {
      if (D_ == 2) return copy_x<2>(at, m, channels, first, rows);
      if (D_ == 3) return copy_x<3>(at, m, channels, first, rows);
      if (D_ == 4) return copy_x<4>(at, m, channels, first, rows);
    }
    copy_x<1>(at, m, channels, first, rows);
  }

  // A column of taps in scratch memory.
  struct Taps {
    A* p;
    int64_t stride;
    PYINDEXNET_INLINE V get(int t) const { return load(p + t * stride); }
    PYINDEXNET_INLINE void set(int t, V a) const { store(p + t * stride, a); }
  };
  Taps taps(A* rows, int s, int64_t column) const { return {rows + s * pitch_ + column, kS * pitch_}; }

  // Raw logits of row i, cells [from, to): out[(t * kS + s) * pitch + cell - from]; 0 outside the grid.
  void raw_logits(const Item& at, int64_t i, int64_t from, int64_t to, A* out) const {
    a_.rank ? affinity_.logits(at.n, at.g, i, from, to, out) : copy_logits(at, i, from, to, out);
  }

  // Normalised weights of row i, cells [from, to); 0 outside the grid.
  __attribute__((noinline)) void weigh_row(const Item& at, int64_t i, int64_t from, int64_t to, A* out) const {
    if (a_.rank) return affinity_.weights(at.n, at.g, i, from, to, out);
    copy_logits(at, i, from, to, out);
    if (a_.normalization == Normalization::none) return;
    for (int s = 0; s < kS; ++s) {
      for (int64_t j = from; j < to; j += L) {
        if (j >= 0 && j < a_.w) normalize_taps<V>(taps(out, s, j - from), taps_, a_.normalization);
      }
    }
  }
};

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
