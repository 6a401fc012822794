// SPDX-License-Identifier: Apache-2.0
// Window sums of a map on the CPU, separable, each direction by csrc/common/window_sum.h. Compiled once per instruction set.
//
// plane_window_sums: a vector is a run of columns of one plane. Down the columns first; then L rows at a time are transposed in
//   registers, so that a vector is a column of L rows, summed along the rows, and transposed back.
// channel_window_sums: a vector is a run of channels of one pixel: along each row, then down the columns; nothing is
// transposed. A band of output rows at a time: scratch memory holds the band with its borders, and the input is read once.
#pragma once
#include "../common/window_sum.h"
#include "simd.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

// kCount vectors that are neighbours in memory.
template <class V, int kCount>
struct Pack {
  V at[kCount];
  Pack() = default;
  PYINDEXNET_INLINE explicit Pack(int value) {
    for (int u = 0; u < kCount; ++u) at[u] = V(value);
  }
  template <class A>
  PYINDEXNET_INLINE explicit Pack(const A* p) {
    for (int u = 0; u < kCount; ++u) at[u] = load(p + u * V::size);
  }
  template <class A>
  PYINDEXNET_INLINE void to(A* p) const {
    for (int u = 0; u < kCount; ++u) store(p + u * V::size, at[u]);
  }
  friend PYINDEXNET_INLINE Pack operator+(const Pack& a, const Pack& b) {
    Pack out;
    for (int u = 0; u < kCount; ++u) out.at[u] = a.at[u] + b.at[u];
    return out;
  }
};

// Lane l of row i becomes lane i of row l, in log2(L) stages.
template <int kStep = 1, class V>
PYINDEXNET_INLINE void transpose(V (&rows)[V::size]) {
  if constexpr (kStep < V::size) {
    for (int i = 0; i < V::size; ++i) {
      if (i & kStep) continue;
      const V low = rows[i], high = rows[i + kStep];
      rows[i] = shuffle(low, high, [](int l) { return l & kStep ? V::size + l - kStep : l; });
      rows[i + kStep] = shuffle(low, high, [](int l) { return l & kStep ? V::size + l : l + kStep; });
    }
    transpose<2 * kStep>(rows);
  }
}

// In place: sums along `n` positions of Packs `stride` elements apart.
template <class P, class A>
PYINDEXNET_INLINE void sum_line(Reach<int64_t> reach, int64_t n, A* line, int64_t stride) {
  const auto get = [=](int64_t p) PYINDEXNET_LAMBDA_INLINE { return P(line + p * stride); };
  const auto put = [=](int64_t p, const P& sum) PYINDEXNET_LAMBDA_INLINE { sum.to(line + p * stride); };
  window_sums<P>(reach.k, reach.lo, reach.hi, n, get, put, put);
}

// Scratch rows should not fall into the same few sets of a cache.
template <class A>
int64_t odd_pitch(int64_t vectors) {
  return (vectors | 1) * Vec<A>::size;
}

// Rows first ... first + rows - 1 of the window sums of an H x W plane.
//   read(i, j, count) -> V: pixels j ... j + count - 1 of row i;  write(i, j, count, V): their sums.
template <class A, class Read, class Write>
void plane_window_sums(
    A* scratch, int64_t H, int64_t W, int64_t kernel_size, int64_t first, int64_t rows, Read read, Write write) {
  using V = Vec<A>;
  constexpr int L = V::size;
  const Reach<int64_t> down(H, kernel_size, first, rows), along(W, kernel_size, 0, W);
  const int64_t vectors = (W + L - 1) / L, pitch = odd_pitch<A>(vectors);
  const int64_t padded = (rows + L - 1) / L * L;
  A* const plane = scratch;
  A* const line = plane + (down.hi > padded ? down.hi : padded) * pitch;

  const auto columns = [&](auto width, int64_t v) PYINDEXNET_LAMBDA_INLINE {
    constexpr int kWidth = decltype(width)::value;
    for (int64_t p = down.lo; p < down.hi; ++p) {
      for (int u = 0; u < kWidth; ++u) {
        const int64_t j = (v + u) * L, left = W - j;
        store(plane + p * pitch + j, read(down.top + p, j, static_cast<int>(left < L ? left : L)));
      }
    }
    sum_line<Pack<V, kWidth>>(down, rows, plane + v * L, pitch);
  };
  int64_t v = 0;
  for (; v + 4 <= vectors; v += 4) columns(std::integral_constant<int, 4>{}, v);
  for (; v < vectors; ++v) columns(std::integral_constant<int, 1>{}, v);

  // kHeight groups of L rows at once: a line's sum waits for the one before it, so two lines take little longer than one.
  const auto along_rows = [&](auto height, int64_t i) PYINDEXNET_LAMBDA_INLINE {
    constexpr int kHeight = decltype(height)::value;
    V block[L];
    for (int g = 0; g < kHeight; ++g) {
      for (int64_t c = 0; c < vectors; ++c) {
        for (int l = 0; l < L; ++l) block[l] = load(plane + (i + g * L + l) * pitch + c * L);
        transpose(block);
        for (int l = 0; l < L; ++l) store(line + ((along.radius + c * L + l) * kHeight + g) * L, block[l]);
      }
    }
    sum_line<Pack<V, kHeight>>(along, W, line, kHeight * L);
    for (int g = 0; g < kHeight; ++g) {
      for (int64_t c = 0; c < vectors; ++c) {
        for (int l = 0; l < L; ++l) block[l] = load(line + ((c * L + l) * kHeight + g) * L);
        transpose(block);
        for (int l = 0; l < L; ++l) store(plane + (i + g * L + l) * pitch + c * L, block[l]);
      }
    }
    const int64_t stop = i + kHeight * L < rows ? i + kHeight * L : rows;
    for (int64_t r = i; r < stop; ++r) {
      for (int64_t j = 0; j < W; j += L) {
        write(first + r, j, static_cast<int>(W - j < L ? W - j : L), load(plane + r * pitch + j));
      }
    }
  };
  int64_t i = 0;
  for (; i + L < rows; i += 2 * L) along_rows(std::integral_constant<int, 2>{}, i);
  if (i < rows) along_rows(std::integral_constant<int, 1>{}, i);
}

// The same for kWidth vectors of channels at once.  read(i, j) -> Pack;  write(i, j, Pack).
template <class A, int kWidth, class Read, class Write>
void channel_window_sums(
    A* scratch, int64_t H, int64_t W, int64_t kernel_size, int64_t first, int64_t rows, Read read, Write write) {
  using V = Vec<A>;
  using P = Pack<V, kWidth>;
  constexpr int64_t kPixel = int64_t{kWidth} * V::size;
  const Reach<int64_t> down(H, kernel_size, first, rows), along(W, kernel_size, 0, W);
  const int64_t pitch = odd_pitch<A>(W * kWidth);
  A* const plane = scratch;
  A* const line = plane + down.hi * pitch;

  for (int64_t p = down.lo; p < down.hi; ++p) {
    for (int64_t j = 0; j < W; ++j) P(read(down.top + p, j)).to(line + (along.radius + j) * kPixel);
    A* const row = plane + p * pitch;
    window_sums<P>(
        along.k, along.lo, along.hi, W, [&](int64_t q) PYINDEXNET_LAMBDA_INLINE { return P(line + q * kPixel); },
        [&](int64_t q, const P& sum) PYINDEXNET_LAMBDA_INLINE { sum.to(line + q * kPixel); },
        [&](int64_t q, const P& sum) PYINDEXNET_LAMBDA_INLINE { sum.to(row + q * kPixel); });
  }
  int64_t v = 0;
  for (; v + 4 <= W * kWidth; v += 4) sum_line<Pack<V, 4>>(down, rows, plane + v * V::size, pitch);
  for (; v < W * kWidth; ++v) sum_line<Pack<V, 1>>(down, rows, plane + v * V::size, pitch);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < W; ++j) write(first + i, j, P(plane + i * pitch + j * kPixel));
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
