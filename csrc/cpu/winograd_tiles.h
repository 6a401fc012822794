// SPDX-License-Identifier: Apache-2.0
// What the kernels of csrc/cpu/isa/winograd*.cpp share: the transform of input tiles and the products at the points.
#pragma once
#include "simd.h"
#include "winograd.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {
namespace winograd {

using V = VecF;
constexpr int L = V::size;
constexpr int S = kWinogradSide;
// Accumulators of the product: rows x 2 vectors, within 32 or 16 registers.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 4;
#endif

PYINDEXNET_INLINE V scaled(float factor, V a) {
  return factor * a.v;
}

// B' d at the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity.
PYINDEXNET_INLINE void to_points(const V (&d)[S], V (&out)[S]) {
  out[0] = d[6] - d[0] + scaled(5.25f, d[2] - d[4]);
  out[7] = d[7] - d[1] + scaled(5.25f, d[3] - d[5]);
  const V even1 = d[2] + d[6] - scaled(4.25f, d[4]), odd1 = d[1] + d[5] - scaled(4.25f, d[3]);
  out[1] = even1 + odd1, out[2] = even1 - odd1;
  const V even2 = d[6] + scaled(0.25f, d[2]) - scaled(1.25f, d[4]);
  const V odd2 = scaled(0.5f, d[1]) - scaled(2.5f, d[3]) + scaled(2.0f, d[5]);
  out[3] = even2 + odd2, out[4] = even2 - odd2;
  const V even3 = d[6] + scaled(4.0f, d[2]) - scaled(5.0f, d[4]);
  const V odd3 = scaled(2.0f, d[1]) - scaled(2.5f, d[3]) + scaled(0.5f, d[5]);
  out[5] = even3 + odd3, out[6] = even3 - odd3;
}

// v: a matrix with steps from row to row and along a row.
struct Factor {
  const float* data;
  int64_t row, step;
};

// m[R, padded] = v[R, count] u[count, padded], NV vectors of columns.
template <int R, int NV>
PYINDEXNET_INLINE void product(Factor v, int64_t count, const float* u, int64_t padded, float* m) {
  V sum[R][NV];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) sum[r][j] = V(0.0f);
  }
  for (int64_t c = 0; c < count; ++c) {
    V b[NV];
    for (int j = 0; j < NV; ++j) b[j] = load(u + c * padded + j * L);
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < NV; ++j) sum[r][j] = sum[r][j] + scaled(v.data[r * v.row + c * v.step], b[j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) store(m + r * padded + j * L, sum[r][j]);
  }
}

template <int R>
void product_rows(Factor v, int64_t count, const float* u, int64_t padded, float* m) {
  int64_t k = 0;
  for (; k + 2 * L <= padded; k += 2 * L) product<R, 2>(v, count, u + k, padded, m + k);
  for (; k < padded; k += L) product<R, 1>(v, count, u + k, padded, m + k);
}

// m[rows, padded] = v[rows, count] u[count, padded].
inline void multiply(Factor v, int64_t rows, int64_t count, const float* u, int64_t padded, float* m) {
  const auto from = [&](int64_t r) { return Factor{v.data + r * v.row, v.row, v.step}; };
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) product_rows<kRows>(from(r), count, u, padded, m + r * padded);
  for (; r + 4 <= rows; r += 4) product_rows<4>(from(r), count, u, padded, m + r * padded);
  for (; r < rows; ++r) product_rows<1>(from(r), count, u, padded, m + r * padded);
}

// The Side x Side tile at (top, left) of all channels of x, transformed in both directions: point p at v + p * step. Outside
// the map it is `zeros`, as many as there are channels.
template <int Side, class T, class F>
PYINDEXNET_INLINE void read_tile(const ChannelsLast& x, int64_t n, int64_t H, int64_t W, int64_t top, int64_t left,
    const T* zeros, float* v, int64_t step, F to_points) {
  if (x.C == 0) return;
  const T* const data = static_cast<const T*>(x.data) + n * x.n;
  const T* pixel[Side][Side];
  for (int i = 0; i < Side; ++i) {
    for (int j = 0; j < Side; ++j) {
      const int64_t h = top + i, w = left + j;
      const bool inside = h >= 0 && h < H && w >= 0 && w < W;
      pixel[i][j] = inside ? data + h * x.h + w * x.w : zeros;
    }
  }
  for (int64_t c = 0; c < x.C; c += L) {
    const int64_t at = c + L <= x.C ? c : x.C - L;  // the last vector may overlap the one before it
    V half[S][Side];
    for (int j = 0; j < Side; ++j) {
      V d[Side], out[S];
      for (int i = 0; i < Side; ++i) d[i] = load(pixel[i][j] + at);
      to_points(d, out);
      for (int i = 0; i < S; ++i) half[i][j] = out[i];
    }
    for (int i = 0; i < S; ++i) {
      V out[S];
      to_points(half[i], out);
      for (int j = 0; j < S; ++j) store(v + (i * S + j) * step + at, out[j]);
    }
  }
}

}  // namespace winograd
}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
