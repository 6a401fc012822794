// SPDX-License-Identifier: Apache-2.0
// Backward of the dynamic-kernel operators, CPU; see csrc/cpu/window.h.
#pragma once
#include <cstring>

#include "window_tiles.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

template <class T, int kR>
class WindowBackward : WindowTiles<T, kR> {
  using Tiles = WindowTiles<T, kR>;
  using Tiles::a_, Tiles::p_, Tiles::taps_, Tiles::pitch_, Tiles::D_, Tiles::z_, Tiles::x_, Tiles::d_, Tiles::grad_;
  using Tiles::L, Tiles::kS, Tiles::kHalo, Tiles::kWide;
  using Tiles::least, Tiles::most, Tiles::vectors, Tiles::row, Tiles::copy_x, Tiles::weigh_row;
  using Tiles::out_, Tiles::carry_, Tiles::offset_, Tiles::shift_, Tiles::phase_, Tiles::halo_, Tiles::affinity_;
  using Tiles::stream_grad_x_, Tiles::stream_grad_logits_;
  using Tiles::taps, Tiles::raw_logits;
  using typename Tiles::A, typename Tiles::V, typename Tiles::Item, typename Tiles::Rows;
  static constexpr int64_t kBlock = WindowPlan::kBlock;

 public:
  using Tiles::Tiles;
  void run(WindowRange range) {
    this->each(range, [this](Item item) {
      for (const int64_t end = p_.groups == 1 ? a_.G : item.g + 1; item.g < end; ++item.g) run_item(item);
    });
  }

 private:
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

  void run_item(const Item& at) const {
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

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
