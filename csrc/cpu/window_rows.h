// SPDX-License-Identifier: Apache-2.0
// Rows of cells in memory and in vectors, CPU: any strides, dtypes widened, 0 outside the columns.
#pragma once
#include "simd.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

// kK neighbouring columns of a row for each of L cells, the first of them cell j, a multiple of L.
// Column kK * j + e of the row is p[e * near + j * far].
template <class T>
struct WindowRows {
  using A = typename Accumulate<T>::type;
  using V = Vec<A>;
  static constexpr int L = V::size;

  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
  static int64_t vectors(int64_t columns) { return (columns + L - 1) / L; }
  static constexpr int count_of(int64_t left) { return left < L ? static_cast<int>(left) : L; }
  // Columns from `columns` on are 0; j >= 0.
  template <int kK>
  static __attribute__((noinline)) void load_tail(
      const T* p, int64_t near, int64_t far, int64_t j, int64_t columns, V (&out)[kK]) {
    for (int e = 0; e < kK; ++e) {
      const int64_t count = (columns - e + kK - 1) / kK;
      out[e] = j < count ? V(load_lanes(p + e * near + j * far, far, count_of(count - j))) : V(A(0));
    }
  }
  template <int kK>
  static __attribute__((noinline)) void store_tail(
      T* p, int64_t near, int64_t far, int64_t j, int64_t columns, const V (&in)[kK]) {
    if (kK > 1 && near == 1 && far == kK) {
      V out[kK];
      if constexpr (kK > 1) interleave<kK>(in, out);
      for (int v = 0; v < kK; ++v) {
        const int64_t first = j * kK + v * L;
        if (first < columns) store_lanes(p + first, 1, count_of(columns - first), out[v]);
      }
      return;
    }
    for (int e = 0; e < kK; ++e) {
      const int64_t count = (columns - e + kK - 1) / kK;
      if (j < count) store_lanes(p + e * near + j * far, far, count_of(count - j), in[e]);
    }
  }
  // Whether vectors of memory are (interleaved) vectors of cells.
  template <int kK>
  static bool unit(int64_t near, int64_t far) {
    return far == kK && (kK == 1 || near == 1);
  }
  template <int kK>
  static PYINDEXNET_INLINE void store_columns(
      T* p, int64_t near, int64_t far, int64_t j, int64_t columns, const V (&in)[kK], bool past_caches) {
    if ((j + L) * kK > columns) return store_tail<kK>(p, near, far, j, columns, in);
    if (kK > 1 && far == 1) {  // a plane for each sub-position
      for (int e = 0; e < kK; ++e) past_caches ? stream(p + e * near + j, in[e]) : store(p + e * near + j, in[e]);
      return;
    }
    if (!unit<kK>(near, far)) return store_tail<kK>(p, near, far, j, columns, in);
    V out[kK];
    if constexpr (kK == 1) {
      out[0] = in[0];
    } else {
      interleave<kK>(in, out);
    }
    for (int v = 0; v < kK; ++v) past_caches ? stream(p + j * kK + v * L, out[v]) : store(p + j * kK + v * L, out[v]);
  }

  // Cells [from, to) of a row, column e of each at out[e * step + cell - from]; 0 outside the columns and where `present` is
  // false.
  template <int kK>
  static PYINDEXNET_INLINE void copy_row(
      const T* p, bool present, int64_t near, int64_t far, int64_t columns, int64_t from, int64_t to, A* out, int64_t step) {
    const auto zeros = [&](int64_t j, int64_t end) PYINDEXNET_LAMBDA_INLINE {
      for (; j < end; j += L) {
        for (int e = 0; e < kK; ++e) store(out + e * step + j - from, V(A(0)));
      }
      return j;
    };
    int64_t j = zeros(from, present ? 0 : to);
    if (!present) return;
    if (unit<kK>(near, far)) {
      for (; j < to && (j + L) * kK <= columns; j += L) {
        V values[kK];
        for (int v = 0; v < kK; ++v) values[v] = load(p + j * kK + v * L);
        if constexpr (kK == 1) {
          store(out + j - from, values[0]);
        } else {
          V apart[kK];
          deinterleave<kK>(values, apart);
          for (int e = 0; e < kK; ++e) store(out + e * step + j - from, apart[e]);
        }
      }
    }
    if (kK > 1 && far == 1) {  // a plane for each sub-position
      for (; j < to && (j + L) * kK <= columns; j += L) {
        for (int e = 0; e < kK; ++e) store(out + e * step + j - from, load(p + e * near + j));
      }
    }
    for (; j < to && j * kK < columns; j += L) {
      V values[kK];
      load_tail<kK>(p, near, far, j, columns, values);
      for (int e = 0; e < kK; ++e) store(out + e * step + j - from, values[e]);
    }
    zeros(j, to);
  }
};

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
