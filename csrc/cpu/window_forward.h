// SPDX-License-Identifier: Apache-2.0
// Forward of the dynamic-kernel operators, CPU; see csrc/cpu/window.h.
#pragma once
#include "window_in_place.h"
#include "window_tiles.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

template <class T, int kR>
class WindowForward : WindowTiles<T, kR> {
  using Tiles = WindowTiles<T, kR>;
  using Tiles::a_, Tiles::p_, Tiles::taps_, Tiles::pitch_, Tiles::D_, Tiles::z_, Tiles::x_, Tiles::offset_, Tiles::stream_y_;
  using Tiles::L, Tiles::kS, Tiles::kHalo, Tiles::kWide;
  using Tiles::least, Tiles::most, Tiles::vectors, Tiles::row, Tiles::copy_x, Tiles::weigh_row;
  using typename Tiles::A, typename Tiles::V, typename Tiles::Item, typename Tiles::Rows;
  // Registers: rows of sub-positions x channels.
  static constexpr int kRows = kR == 1 ? 1 : kR == 2 ? 2 : kR == 4 && kWide ? 2 : 1;
  static constexpr int kChannels = kR == 1 ? 8 : kR == 3 ? (kWide ? 4 : 2) : kR == 4 ? 2 : (kWide ? 4 : 2);

 public:
  using Tiles::Tiles;
  void run(WindowRange range) {
    this->each(range, [this](const Item& item) { run_item(item); });
  }

 private:
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

  void run_item(Item at) const {
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
      for (; m + L <= a_.M; m += L) channel_sums<1>(at, i, j, m, z, y + m);
      if (m < a_.M) last_channels(at, i, j, m, z, y + m);
    }
  }
  // Weights of one cell and sub-position: tap t at p[t * t_stride].
  struct Scalars {
    const A* p;
    int64_t t_stride;
  };
  template <int kC>
  PYINDEXNET_INLINE void channel_sums(const Item& at, int64_t i, int64_t j, int64_t m, Scalars z, T* y) const {
    V sum[kC];
    for (V& one : sum) one = V(A(0));
    each_tap(at, i, j, m, z, [&](const T* x, V w) PYINDEXNET_LAMBDA_INLINE {
      for (int c = 0; c < kC; ++c) sum[c] = sum[c] + w * V(load(x + c * L));
    });
    for (int c = 0; c < kC; ++c) store(y + c * L, sum[c]);
  }
  // Fewer channels than a vector has lanes.
  PYINDEXNET_INLINE void last_channels(const Item& at, int64_t i, int64_t j, int64_t m, Scalars z, T* y) const {
    const int count = static_cast<int>(a_.M - m);
    V sum(A(0));
    each_tap(at, i, j, m, z, [&](const T* x, V w) PYINDEXNET_LAMBDA_INLINE { sum = sum + w * V(load_first(x, count)); });
    store_first(y, count, sum);
  }
  // act(x, w) for every tap that lies in the image: channels from m on of its pixel, and its weight.
  template <class Act>
  PYINDEXNET_INLINE void each_tap(const Item& at, int64_t i, int64_t j, int64_t m, Scalars z, Act act) const {
    const int64_t top = i * D_ - a_.before(), left = j * D_ - a_.before();
    const int64_t tx_begin = most(0, -left), tx_end = least(a_.k, a_.W - left);
    for (int64_t ty = most(0, -top); ty < least(a_.k, a_.H - top); ++ty) {
      const T* x = row(a_.x, at, m, top + ty) + left * a_.x.w;
      for (int64_t tx = tx_begin; tx < tx_end; ++tx) {
        act(x + tx * a_.x.w, V(z.p[(ty * a_.k + tx) * z.t_stride]));
      }
    }
  }
};

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
