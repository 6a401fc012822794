// SPDX-License-Identifier: Apache-2.0
// Weighted window sums of scale 1 and stride 1, CPU: a row of kB channels, x read where it is, rather than copied to scratch
// memory first. A vector is a run of pixels of the row. Equation: csrc/common/window.h.
#pragma once
#include "simd.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

// Neighbouring pixels of a row lie side by side in x, z and y; all other strides in elements.
template <class A>
struct WindowRow {
  const A* x;  // column 0 of the window's first row
  int64_t x_m, x_h;
  const A* z;  // column 0 of the first tap
  int64_t z_t;
  A* y;  // column 0
  int64_t y_m;
  int k, row, row_end;      // of the window's rows, [row, row_end) are in the image
  int64_t before, columns;  // pixels of the window left of the cell's own; columns of the image
  int64_t begin, end;       // columns of y
  bool past_caches;         // whether y is written past the caches
};

// get(p, column) -> the vector at p, where lane 0 has that column of the image.
template <int kB, class A, class Get>
PYINDEXNET_INLINE void window_row_sums(const WindowRow<A>& r, int64_t j, Get get, Vec<A> (&sum)[kB]) {
  for (Vec<A>& one : sum) one = Vec<A>(A(0));
  const A* x = r.x + r.row * r.x_h + j - r.before;
  const A* z = r.z + r.row * r.k * r.z_t + j;
  for (int ty = r.row; ty < r.row_end; ++ty, x += r.x_h) {
    for (int tx = 0; tx < r.k; ++tx, z += r.z_t) {
      const Vec<A> w = load(z);
      for (int b = 0; b < kB; ++b) sum[b] = sum[b] + w * get(x + b * r.x_m + tx, j - r.before + tx);
    }
  }
}

// Not more than eight channels: planes tend to lie a power of two apart, and their lines then share a set of the first cache.
template <int kB, class A>
__attribute__((noinline)) void window_row(const WindowRow<A>& args) {
  constexpr int L = Vec<A>::size;
  const WindowRow<A> r = args;  // a store of y may change what is referred to, as far as the compiler knows
  const auto whole = [](const A* p, int64_t) PYINDEXNET_LAMBDA_INLINE { return load(p); };
  const auto inside = [&](const A* p, int64_t column)
                          PYINDEXNET_LAMBDA_INLINE { return load_between(p, -column, r.columns - column); };
  for (int64_t j = r.begin; j < r.end; j += L) {
    Vec<A> sum[kB];
    if (j >= r.before && j - r.before + r.k - 1 + L <= r.columns) {
      window_row_sums<kB>(r, j, whole, sum);
    } else {
      window_row_sums<kB>(r, j, inside, sum);
    }
    for (int b = 0; b < kB; ++b) {
      A* y = r.y + b * r.y_m + j;
      if (j + L > r.end) {
        store_lanes(y, 1, static_cast<int>(r.end - j), sum[b]);
      } else {
        r.past_caches ? stream(y, sum[b]) : store(y, sum[b]);
      }
    }
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
