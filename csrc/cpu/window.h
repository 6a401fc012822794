// SPDX-License-Identifier: Apache-2.0
// The dynamic-kernel operators, CPU. Equations: csrc/common/window.h. Compiled once per instruction set by
// csrc/cpu/isa/window.cpp. A vector is a run of cells in a row. The weights of a strip of rows are normalised into scratch
// memory once, for all channels of the group; rows of x and of the gradient are copied there with a border of zeros (widened,
// columns of equal remainder by the stride side by side), so that the inner loops have no borders, strides or dtypes. They keep
// a block of channels x sub-positions (or taps) in registers. Where nothing would change on the way, x is read in place
// (csrc/cpu/window_in_place.h). Arithmetic in float, double for double.
#pragma once
#include <initializer_list>
#include <type_traits>

#include "../common/window_normalization.h"
#include "simd.h"
#include "window_affinity.h"
#include "window_in_place.h"
#include "window_plan.h"
#include "window_rows.h"

namespace pyindexnet {

inline namespace PYINDEXNET_ISA {

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// kR: scale. The stride is 1 where it is above 1.
template <class T, int kR>
class WindowKernel : WindowRows<T> {
  using Rows = WindowRows<T>;
  using Rows::L, Rows::least, Rows::most, Rows::vectors;
  using typename Rows::A, typename Rows::V;
  static constexpr int kS = kR * kR;
  static constexpr int64_t kHalo = WindowPlan::kHalo, kBlock = WindowPlan::kBlock;
  // Registers: rows of sub-positions x channels of the forward; an AVX-512 machine has twice the registers.
  static constexpr bool kWide = kVectorBytes == 64;
  static constexpr int kRows = kR == 1 ? 1 : kR == 2 ? 2 : kR == 4 && kWide ? 2 : 1;
  static constexpr int kChannels = kR == 1 ? 8 : kR == 3 ? (kWide ? 4 : 2) : kR == 4 ? 2 : (kWide ? 4 : 2);

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
  WindowKernel(const WindowArgs& a, const WindowPlan& p, void* scratch)
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
    stream_y_ = whole_lines && !x.data && !k.data && large(y.data, {y.n, y.g, y.m, y.h}, planes * a.P * a.Q);
    stream_grad_x_ = large(x.data, {x.n, x.g, x.m, x.h}, planes * a.H * a.W);
    stream_grad_logits_ = large(k.data, {k.n, k.g, k.t, k.sy, k.sx, k.h}, a.N * a.G * taps_ * kS * a.h * a.w) && !a.dense;
  }

  void run(bool backward, WindowRange range) {
    for (int64_t index = range.begin; index < range.end; ++index) {
      const int64_t tile = index % p_.tiles, band = index / p_.tiles % p_.bands, plane = index / (p_.tiles * p_.bands);
      const int64_t groups = p_.groups;  // of items; 1: an item has all of them
      Item item{
          plane / groups, plane % groups, band * p_.band_rows, (band + 1) * p_.band_rows, tile * p_.tile, (tile + 1) * p_.tile};
      if (a_.rank) affinity_.generate(item.n, item.g, groups == 1 ? a_.G : 1);
      if (!backward) {
        run_forward(item);
      } else {
        for (const int64_t end = groups == 1 ? a_.G : item.g + 1; item.g < end; ++item.g) run_backward(item);
      }
    }
    if (stream_y_ || stream_grad_x_ || stream_grad_logits_) stream_fence();
  }

 private:
  // An output of this many bytes does not stay in a cache until it is read: its vectors, if all aligned, are written past them.
  static constexpr int64_t kStreamBytes = int64_t{16} << 20;
  static bool large(const void* data, std::initializer_list<int64_t> strides, int64_t elements) {
    if (!std::is_same_v<T, float> || !data || reinterpret_cast<uintptr_t>(data) % kVectorBytes) return false;
    for (const int64_t stride : strides) {
      if (stride % L) return false;
    }
    return elements * int64_t{sizeof(T)} >= kStreamBytes;
  }

  // --- memory ----------------------------------------------------------------------------------------------------

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

  // --- weights ---------------------------------------------------------------------------------------------

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

  // Weights of a row of cells: tap t of sub-position s from p + t * this->t + s * this->s on.
  struct Weights {
    const A* p;
    int64_t t, s;
  };
  // Whether the logits can serve as weights where they are: used as they are, whole vectors, nothing absent.
  bool usable_logits() const {
    return std::is_same_v<T, A> && !a_.rank && a_.normalization == Normalization::none && a_.logits.w == 1 && a_.w % L == 0 &&
           a_.w * kR == a_.Q && a_.h * kR == a_.P && (kR == 1 || a_.logits.sy == kR * a_.logits.sx);
  }
  Weights weights(const Item& at, int64_t i, int64_t r, bool direct) const {
    if constexpr (std::is_same_v<T, A>) {
      if (direct) return {row(a_.logits, at, 0, 0, i) + at.column, a_.logits.t, a_.logits.sx};
    }
    return {z_ + r * taps_ * kS * pitch_, kS * pitch_, pitch_};
  }

  // --- forward ---------------------------------------------------------------------------------------------

  void run_forward(Item at) const {
    at.row_end = least(at.row_end, a_.h), at.column_end = least(at.column_end, a_.w);
    if (at.column >= at.column_end) return;
    if (p_.channels) return run_channels(at);
    const int64_t end = at.column + vectors(at.column_end - at.column) * L;
    const bool direct = usable_logits(), in_place = D_ == 1 && a_.x.w == 1 && a_.y.w == 1;
    for (int64_t i0 = at.row; i0 < at.row_end; i0 += p_.strip) {
      const int64_t rows = least(p_.strip, at.row_end - i0), x_rows = (rows - 1) * D_ + a_.k;
      for (int64_t r = 0; r < rows && !direct; ++r) weigh_row(at, i0 + r, at.column, end, z_ + r * taps_ * kS * pitch_);
      if constexpr (kR == 1 && std::is_same_v<T, A>) {
        if (in_place) {
          sum_in_place(at, i0, rows, direct);
          continue;
        }
      }
      for (int64_t m = 0; m < a_.M; m += kChannels) {
        const int channels = static_cast<int>(least(kChannels, a_.M - m));
        copy_x(at, m, channels, i0 * D_ - a_.before(), x_rows);
        for (int64_t r = 0; r < rows; ++r) {
          const Weights z = weights(at, i0 + r, r, direct);
          if (channels == kChannels) {
            weighted_sums<kChannels>(at, i0 + r, m, z, x_ + r * D_ * D_ * pitch_, x_rows);
          } else {
            for (int b = 0; b < channels; ++b) {
              weighted_sums<1>(at, i0 + r, m + b, z, x_ + (b * x_rows + r * D_) * D_ * pitch_, x_rows);
            }
          }
        }
      }
    }
  }

  // Rows [i0, i0 + rows) of y, x read where it is.
  void sum_in_place(const Item& at, int64_t i0, int64_t rows, bool direct) const {
    for (int64_t m = 0; m < a_.M;) {
      const bool block = m + kChannels <= a_.M;
      for (int64_t i = i0; i < i0 + rows; ++i) {
        const Weights z = weights(at, i, i - i0, direct);
        const int64_t top = i - a_.before();
        const int first = static_cast<int>(most(0, -top)), last = static_cast<int>(least(a_.k, a_.H - top));
        const WindowRow<A> of_row{row(a_.x, at, m, top), a_.x.m, a_.x.h, z.p - at.column, z.t, row(a_.y, at, m, i), a_.y.m,
            a_.k, first, last, a_.before(), a_.W, at.column, at.column_end, stream_y_};
        block ? window_row<kChannels>(of_row) : window_row<1>(of_row);
      }
      m += block ? kChannels : 1;
    }
  }

  // y of one row of cells in kB channels from m.
  template <int kB>
  __attribute__((noinline)) void weighted_sums(
      const Item& at, int64_t i, int64_t m, Weights z, const A* x, int64_t x_rows) const {
    const int64_t channel = x_rows * D_ * pitch_;
    for (int64_t j = at.column; j < at.column_end; j += L) {
      const int64_t column = j - at.column;
      for (int sy = 0; sy < kR; sy += kRows) {
        V sum[kB][kRows * kR];
        for (auto& of_channel : sum) {
          for (V& one : of_channel) one = V(A(0));
        }
        const A* weights = z.p + sy * kR * z.s + column;
        for (int t = 0; t < taps_; ++t, weights += z.t) {
          V w[kRows * kR];
          for (int s = 0; s < kRows * kR; ++s) w[s] = load(weights + s * z.s);
          for (int b = 0; b < kB; ++b) {
            const V pixel = load(x + b * channel + offset_[t] + column);
            for (int s = 0; s < kRows * kR; ++s) sum[b][s] = sum[b][s] + w[s] * pixel;
          }
        }
        for (int b = 0; b < kB; ++b) {
          for (int s = 0; s < kRows; ++s) {
            const int64_t h = i * kR + sy + s;
            if (h >= a_.P) continue;
            V values[kR];
            for (int e = 0; e < kR; ++e) values[e] = sum[b][s * kR + e];
            Rows::template store_columns<kR>(row(a_.y, at, m + b, h), a_.y.w, kR * a_.y.w, j, a_.Q, values, stream_y_);
          }
        }
      }
    }
  }

  // channels_last: a vector is a run of a group's channels, the weights are scalars. Nothing but those is copied. All groups of
  // a run of cells together, since their channels are neighbours in memory.
  void run_channels(Item at) const {
    constexpr bool kDirect = std::is_same_v<T, A>;  // weights of a half type are widened first
    const bool direct = kDirect && !a_.rank && a_.normalization == Normalization::none;
    for (int64_t i = at.row; i < at.row_end; ++i) {
      for (int64_t begin = at.column; begin < at.column_end; begin += L) {
        for (at.g = 0; at.g < a_.G; ++at.g) {
          if (!direct) weigh_row(at, i, begin, begin + L, z_);
          for (int64_t j = begin; j < least(begin + L, at.column_end); ++j) channel_cell(at, i, j, j - begin, direct);
        }
      }
    }
  }
  PYINDEXNET_INLINE void channel_cell(const Item& at, int64_t i, int64_t j, int64_t column, bool direct) const {
    for (int s = 0; s < kS; ++s) {
      const int64_t h = i * kR + s / kR, w = j * kR + s % kR;
      if (h >= a_.P || w >= a_.Q) continue;
      Scalars z{z_ + s * pitch_ + column, kS * pitch_};
      if constexpr (std::is_same_v<T, A>) {
        if (direct) z = {row(a_.logits, at, 0, s / kR, i) + s % kR * a_.logits.sx + j * a_.logits.w, a_.logits.t};
      }
      T* y = row(a_.y, at, 0, h) + w * a_.y.w;
      int64_t m = 0;
      for (; m + 4 * L <= a_.M; m += 4 * L) channel_sums<4>(at, i, j, m, z, y + m);
      for (; m < a_.M; m += L) channel_sums<1>(at, i, j, m, z, y + m);
    }
  }
  // Weights of one cell and sub-position: tap t at p[t * t_stride].
  struct Scalars {
    const A* p;
    int64_t t_stride;
  };
  template <int kC>
  PYINDEXNET_INLINE void channel_sums(const Item& at, int64_t i, int64_t j, int64_t m, Scalars z, T* y) const {
    const int64_t top = i * D_ - a_.before(), left = j * D_ - a_.before();
    const int64_t tx_begin = most(0, -left), tx_end = least(a_.k, a_.W - left);
    V sum[kC];
    for (V& one : sum) one = V(A(0));
    for (int64_t ty = most(0, -top); ty < least(a_.k, a_.H - top); ++ty) {
      const T* x = row(a_.x, at, m, top + ty) + left * a_.x.w;
      for (int64_t tx = tx_begin; tx < tx_end; ++tx) {
        const V w(z.p[(ty * a_.k + tx) * z.t_stride]);
        for (int c = 0; c < kC; ++c) sum[c] = sum[c] + w * V(load(x + tx * a_.x.w + c * L));
      }
    }
    for (int c = 0; c < kC; ++c) store(y + c * L, sum[c]);
  }

  // --- backward --------------------------------------------------------------------------------------------

  // Gradient of y at row i, channels m..: out[(channel * strip + row) * kS + s], with halo; 0 where there is none.
  __attribute__((noinline)) void copy_grad(const Item& at, int64_t m, int channels, int64_t i0, int64_t rows) const {
    const int64_t from = at.column - halo_, to = at.column + vectors(at.column_end - at.column) * L + halo_;
    for (int b = 0; b < channels; ++b) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int sy = 0; sy < kR; ++sy) {
          const int64_t h = (i0 + r) * kR + sy;
          A* out = grad_ + ((b * rows + r) * kS + sy * kR) * pitch_ + kHalo - halo_;
          Rows::template copy_row<kR>(row(a_.y, at, m + b, h), h < a_.P, a_.y.w, kR * a_.y.w, a_.Q, from, to, out, pitch_);
        }
      }
    }
  }

  void run_backward(const Item& at) const {
    const bool need_x = a_.grad_x.data, need_logits = a_.need_kernels();
    const int64_t before = a_.before(), carried = p_.carried_rows(a_);
    const int64_t x_first = at.row * D_, x_end = least(at.row_end * D_, a_.H);  // rows of grad_x that are this item's
    int64_t first = at.row, end = at.row_end;                                   // rows of cells that take part
    if (need_x) {
      const int64_t lowest = x_first + before - (a_.k - 1);
      first = most(0, lowest > 0 ? (lowest + D_ - 1) / D_ : 0);
      end = (x_end - 1 + before) / D_ + 1;
      end = x_end > x_first ? most(end, at.row_end) : at.row_end;
    }
    end = least(end, a_.h);
    const int64_t from = at.column - halo_, to = at.column + vectors(at.column_end - at.column) * L + halo_;
    int64_t written = x_first;  // rows of grad_x before this one are complete
    for (int64_t i0 = first; i0 < end; i0 += p_.strip) {
      const int64_t rows = least(p_.strip, end - i0), x_rows = (rows - 1) * D_ + a_.k;
      const int64_t top = i0 * D_ - before, done = i0 + rows < end ? rows * D_ : rows * D_ + carried;
      if (need_x) {
        for (int64_t r = 0; r < rows; ++r) weigh_row(at, i0 + r, from, to, z_ + r * taps_ * kS * pitch_ + kHalo - halo_);
      }
      for (int64_t m = 0; m < a_.M; m += kBlock) {
        const int channels = static_cast<int>(least(kBlock, a_.M - m));
        copy_grad(at, m, channels, i0, rows);
        if (need_logits) {
          copy_x(at, m, channels, top, x_rows);
          for (int64_t r = 0; r < rows; ++r) {
            if (i0 + r >= at.row && i0 + r < at.row_end) pair_row(at, m == 0, channels, r, rows, x_rows);
          }
        }
        if (need_x) {
          spread(at, m, channels, rows, i0 == first);
          for (int b = 0; b < channels; ++b) {
            write_rows(at, m + b, written, most(top, written), nullptr);
            const A* out = out_ + b * ((rows - 1) * D_ + most(a_.k, D_)) * D_ * pitch_;
            const int64_t begin = most(top, written);
            write_rows(at, m + b, begin, top + done, out + (begin - top) * D_ * pitch_);
          }
        }
      }
      written = most(written, least(top + done, x_end));
      if (need_logits) {
        for (int64_t r = 0; r < rows; ++r) {
          if (i0 + r >= at.row && i0 + r < at.row_end) grad_logits_row(at, i0 + r, r);
        }
      }
    }
    if (need_x) {
      for (int64_t m = 0; m < a_.M; ++m) write_rows(at, m, written, x_end, nullptr);
    }
  }

  // Rows [from, to) of grad_x that are this item's, from scratch rows or as 0.
  template <int kD>
  __attribute__((noinline)) void write_rows(const Item& at, int64_t m, int64_t from, int64_t to, const A* rows) const {
    to = least(to, least(at.row_end * kD, a_.H));
    const int64_t columns = least(a_.W, at.column_end * kD);
    for (int64_t h = from; h < to; ++h) {
      for (int64_t j = at.column; j * kD < columns; j += L) {
        V values[kD];
        for (int e = 0; e < kD; ++e) values[e] = rows ? load(rows + ((h - from) * kD + e) * pitch_ + j - at.column) : V(A(0));
        Rows::template store_columns<kD>(
            row(a_.grad_x, at, m, h), a_.grad_x.w, kD * a_.grad_x.w, j, columns, values, stream_grad_x_);
      }
    }
  }
  void write_rows(const Item& at, int64_t m, int64_t from, int64_t to, const A* rows) const {
    if (from >= to) return;
    if constexpr (kR == 1) {
      if (D_ == 2) return write_rows<2>(at, m, from, to, rows);
      if (D_ == 3) return write_rows<3>(at, m, from, to, rows);
      if (D_ == 4) return write_rows<4>(at, m, from, to, rows);
    }
    write_rows<1>(at, m, from, to, rows);
  }

  // d += sum over a block of channels of grad x, for row r of the strip.
  __attribute__((noinline)) void pair_row(
      const Item& at, bool begin, int channels, int64_t r, int64_t rows, int64_t x_rows) const {
    constexpr int kSub = kR == 1 ? 1 : kR == 3 ? 3 : 4, kTaps = kR == 1 ? (kWide ? 8 : 4) : kWide ? 4 : 2;
    const A* x = x_ + r * D_ * D_ * pitch_;
    const A* grad = grad_ + r * kS * pitch_ + kHalo;
    A* d = d_ + r * taps_ * kS * pitch_;
    for (int64_t column = 0; column < at.column_end - at.column; column += L) {
      for (int s = 0; s < kS; s += kSub) {
        int t = 0;
        for (; t + kTaps <= taps_; t += kTaps) {
          pair_taps<kTaps, kSub>(begin, channels, x + column, x_rows, grad + s * pitch_ + column, rows, d + column, t, s);
        }
        for (; t < taps_; ++t) {
          pair_taps<1, kSub>(begin, channels, x + column, x_rows, grad + s * pitch_ + column, rows, d + column, t, s);
        }
      }
    }
  }
  template <int kTaps, int kSub>
  PYINDEXNET_INLINE void pair_taps(
      bool begin, int channels, const A* x, int64_t x_rows, const A* grad, int64_t rows, A* d, int t, int s) const {
    V sum[kTaps][kSub];
    A* to = d + (t * kS + s) * pitch_;
    for (int i = 0; i < kTaps; ++i) {
      for (int e = 0; e < kSub; ++e) sum[i][e] = begin ? V(A(0)) : V(load(to + (i * kS + e) * pitch_));
    }
    for (int b = 0; b < channels; ++b) {
      V g[kSub];
      for (int e = 0; e < kSub; ++e) g[e] = load(grad + e * pitch_);
      for (int i = 0; i < kTaps; ++i) {
        const V pixel = load(x + offset_[t + i]);
        for (int e = 0; e < kSub; ++e) sum[i][e] = sum[i][e] + pixel * g[e];
      }
      x += x_rows * D_ * pitch_, grad += rows * kS * pitch_;
    }
    for (int i = 0; i < kTaps; ++i) {
      for (int e = 0; e < kSub; ++e) store(to + (i * kS + e) * pitch_, sum[i][e]);
    }
  }

  // grad_logits of row i from d.
  __attribute__((noinline)) void grad_logits_row(const Item& at, int64_t i, int64_t r) const {
    A* d = d_ + r * taps_ * kS * pitch_;
    const int64_t to = least(at.column_end, a_.w);
    if (i >= a_.h || at.column >= to) return;
    if (a_.normalization != Normalization::none) {
      A* logits = z_ + r * taps_ * kS * pitch_;
      raw_logits(at, i, at.column, to, logits);
      for (int s = 0; s < kS; ++s) {
        for (int64_t j = 0; j < to - at.column; j += L) {
          normalize_vjp_taps<V>(taps(logits, s, j), taps(d, s, j), taps_, a_.normalization);
        }
      }
    }
    if (a_.rank) return affinity_.gradients(at.n, at.g, i, at.row, at.column, to, d);
    // Absent sub-positions have memory in the shuffled layout only, and get their 0.
    const int64_t columns = least(a_.dense ? a_.Q : a_.w * kR, to * kR);
    for (int t = 0; t < taps_; ++t) {
      for (int sy = 0; sy < kR; ++sy) {
        if (a_.dense && i * kR + sy >= a_.P) continue;
        T* p = row(a_.grad_logits, at, t, sy, i);
        for (int64_t j = at.column; j < to; j += L) {
          V values[kR];
          for (int e = 0; e < kR; ++e) values[e] = load(d + (t * kS + sy * kR + e) * pitch_ + j - at.column);
          Rows::template store_columns<kR>(p, a_.grad_logits.sx, a_.grad_logits.w, j, columns, values, stream_grad_logits_);
        }
      }
    }
  }

  // What a strip adds to grad_x, into scratch rows from row i0 * D - before on. Rows that the next strip adds to are carried.
  void spread(const Item& at, int64_t m, int channels, int64_t rows, bool begin) const {
    const int64_t out_rows = (rows - 1) * D_ + most(a_.k, D_), line = D_ * pitch_, carried = p_.carried_rows(a_);
    const int64_t bytes = carried * line * sizeof(A);
    for (int b = 0; b < channels; ++b) {
      A* out = out_ + b * out_rows * line;
      A* carry = carry_ + (m + b) * carried * line;
      const int64_t kept = begin ? 0 : carried;
      if (kept) std::memcpy(out, carry, bytes);
      std::memset(out + kept * line, 0, (out_rows - kept) * line * sizeof(A));
    }
    constexpr int kB = 4;
    int b = 0;
    for (; b + kB <= channels; b += kB) spread_channels<kB>(at, b, rows, out_rows);
    for (; b < channels; ++b) spread_channels<1>(at, b, rows, out_rows);
    for (b = 0; b < channels && carried; ++b) {
      std::memcpy(carry_ + (m + b) * carried * line, out_ + (b * out_rows + out_rows - carried) * line, bytes);
    }
  }
  template <int kB>
  __attribute__((noinline)) void spread_channels(const Item& at, int b, int64_t rows, int64_t out_rows) const {
    constexpr int kQ = kWide ? 5 : 3;
    for (int64_t r = 0; r < rows; ++r) {
      const A* z = z_ + r * taps_ * kS * pitch_ + kHalo;
      const A* grad = grad_ + (b * rows + r) * kS * pitch_ + kHalo;
      A* out = out_ + (b * out_rows + r * D_) * D_ * pitch_;
      int ty = 0;
      for (; ty + kQ <= a_.k; ty += kQ) spread_taps<kB, kQ>(at, z, grad, rows, out, out_rows, ty);
      for (; ty + 3 <= a_.k; ty += 3) spread_taps<kB, 3>(at, z, grad, rows, out, out_rows, ty);
      for (; ty + 2 <= a_.k; ty += 2) spread_taps<kB, 2>(at, z, grad, rows, out, out_rows, ty);
      for (; ty < a_.k; ++ty) spread_taps<kB, 1>(at, z, grad, rows, out, out_rows, ty);
    }
  }
  // Rows ty..ty + kQ of the window.
  template <int kB, int kQ>
  PYINDEXNET_INLINE void spread_taps(
      const Item& at, const A* z, const A* grad, int64_t rows, A* out, int64_t out_rows, int ty) const {
    const int64_t grad_channel = rows * kS * pitch_, out_channel = out_rows * D_ * pitch_, z_row = a_.k * kS * pitch_;
    for (int64_t phase = 0; phase < D_; ++phase) {
      for (int64_t column = 0; column < at.column_end - at.column; column += L) {
        V sum[kQ][kB];
        A* to = out + (ty * D_ + phase) * pitch_ + column;
        for (int q = 0; q < kQ; ++q) {
          for (int b = 0; b < kB; ++b) sum[q][b] = load(to + b * out_channel + q * D_ * pitch_);
        }
        for (int tx = 0; tx < a_.k; ++tx) {
          if (phase_[tx] != phase) continue;
          const A* w = z + (ty * a_.k + tx) * kS * pitch_ + column - shift_[tx];
          const A* g = grad + column - shift_[tx];
          for (int s = 0; s < kS; ++s, w += pitch_, g += pitch_) {
            V of_channel[kB];
            for (int b = 0; b < kB; ++b) of_channel[b] = load(g + b * grad_channel);
            for (int q = 0; q < kQ; ++q) {
              const V weight = load(w + q * z_row);
              for (int b = 0; b < kB; ++b) sum[q][b] = sum[q][b] + weight * of_channel[b];
            }
          }
        }
        for (int q = 0; q < kQ; ++q) {
          for (int b = 0; b < kB; ++b) store(to + b * out_channel + q * D_ * pitch_, sum[q][b]);
        }
      }
    }
  }
};

template <class T>
void run_window_dtype(const WindowArgs& a, const WindowPlan& plan, bool backward, WindowRange range, void* scratch) {
  switch (a.scale) {
    case 1:
      return WindowKernel<T, 1>(a, plan, scratch).run(backward, range);
    case 2:
      return WindowKernel<T, 2>(a, plan, scratch).run(backward, range);
    case 3:
      return WindowKernel<T, 3>(a, plan, scratch).run(backward, range);
    default:
      return WindowKernel<T, 4>(a, plan, scratch).run(backward, range);
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
