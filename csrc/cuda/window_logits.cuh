// SPDX-License-Identifier: Apache-2.0
// Elements of strided tensors, and where the raw logits of a cell come from: memory, or an affinity map and its generator.
#pragma once
#include <type_traits>

#include "../common/window.h"
#include "numeric.cuh"

namespace pyindexnet::cuda {

template <class T>
__device__ inline T* at(const Planes& t, int64_t n, int64_t g, int64_t m, int64_t h, int64_t w) {
  return static_cast<T*>(t.data) + n * t.n + g * t.g + m * t.m + h * t.h + w * t.w;
}

template <class T>
__device__ inline T* at(const Kernels& k, int64_t n, int64_t g, int64_t t, int s, int scale, int64_t i, int64_t j) {
  return static_cast<T*>(k.data) + n * k.n + g * k.g + t * k.t + s / scale * k.sy + s % scale * k.sx + i * k.h + j * k.w;
}

// Sub-position s of cell (i, j) lies in the output.
__device__ inline bool is_present(const WindowArgs& a, int s, int64_t i, int64_t j) {
  return i * a.scale + s / a.scale < a.P && j * a.scale + s % a.scale < a.Q;
}

// The logits of sub-position s of cell (i, j), by tap.
template <class T>
struct GivenLogits {
  const T* first;
  int64_t stride;
  __device__ inline GivenLogits(const WindowArgs& a, int64_t n, int64_t g, int s, int64_t i, int64_t j)
      : first(at<T>(a.logits, n, g, 0, s, a.scale, i, j)), stride(a.logits.t) {}
  __device__ inline Accumulator<T> operator()(int64_t t) const { return Accumulator<T>(first[t * stride]); }
};

// Threads of a warp share the generator's numbers or the map's, so that both come from the first-level cache.
template <class T>
struct AffinityLogits {
  const T *map, *p;
  int64_t map_stride, p_stride, tap_stride;
  int rank;
  __device__ inline AffinityLogits(const WindowArgs& a, int64_t n, int64_t g, int s, int64_t i, int64_t j)
      : map(static_cast<const T*>(a.a.data) + n * a.a.n + i * a.a.h + j * a.a.w),
        p(static_cast<const T*>(a.p.data) + n * a.p.n + (g * a.group_logits() + s) * a.p.c),
        map_stride(a.a.d),
        p_stride(a.p.d),
        tap_stride(a.scale * a.scale * a.p.c),
        rank(a.rank) {}
  __device__ inline Accumulator<T> operator()(int64_t t) const {
    const T* of_tap = p + t * tap_stride;
    Accumulator<T> sum = 0;
    for (int e = 0; e < rank; ++e) sum += Accumulator<T>(map[e * map_stride]) * Accumulator<T>(of_tap[e * p_stride]);
    return sum;
  }
};

template <class T, bool kAffinity>
using Logits = std::conditional_t<kAffinity, AffinityLogits<T>, GivenLogits<T>>;

}  // namespace pyindexnet::cuda
