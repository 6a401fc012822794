// SPDX-License-Identifier: Apache-2.0
// Cells in memory and in vectors, CPU: which cells make a vector, where its lanes lie, loads and stores of any strides and
// dtypes. csrc/cpu/index_cell.h computes with them.
#pragma once
#include "../common/index_normalization.h"
#include "simd.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

template <class T, int R>
class CellAccess {
 protected:
  using A = typename Accumulate<T>::type;
  using V = Vec<A>;
  static constexpr int K = R * R, L = V::size;
  static constexpr unsigned kAll = all_present<K>();

  const CellArgs& a_;
  // What is fetched into the cache ahead of its load, since hardware prefetchers stop at each page and a cell reads 6 streams:
  // planar tensors this many cells ahead, in whole rows of cells, so that no stream fetches what another one is reading,
  // those of low resolution twice as far; channels_last ones of high resolution this many elements ahead.
  static constexpr int64_t kCellsAhead = 256;
  static constexpr int64_t kElementsAhead = 1024 / sizeof(T);

  const bool planar_, unit_strides_, stream_high_, stream_low_, stream_map_;
  const int64_t rows_ahead_;

  // Lanes of one chunk in one tensor: position k = (dy, dx) of lane l is p[dy * y + dx * x + l * lane]; `ahead` is fetched
  // with it.
  struct Lanes {
    T* p;
    int64_t y, x, lane, ahead;
  };
  // Fast: a full vector of full cells in unit strides; its lanes are cells of a row (planar) or channels of a cell.
  template <bool kPlanar>
  struct Fast {
    static constexpr bool fast = true, planar = kPlanar;
    static constexpr int count = L;
    static constexpr unsigned present = kAll;
  };
  // Anything else. Never inlined, so that there is one copy for all layouts.
  struct Slow {
    static constexpr bool fast = false, planar = false;
    int count;
    unsigned present;
  };

  explicit CellAccess(const CellArgs& a)
      : a_(a),
        planar_(!a.channels_last),
        unit_strides_(unit_strides()),
        stream_high_(stream_image(a.out_high, a.H * a.W)),
        stream_low_(stream_image(a.out_low, a.h * a.w)),
        stream_map_(stream_map()),
        rows_ahead_((kCellsAhead + a.w - 1) / a.w) {}

  bool unit_strides() const {
    const Image* high[] = {&a_.factor_high, &a_.other_high, &a_.out_high};
    const Image* low[] = {&a_.factor_low, &a_.other_low, &a_.out_low};
    for (const Image* t : high) {
      if (t->data && (planar_ ? t->w : t->c) != 1) return false;
    }
    for (const Image* t : low) {
      if (t->data && (planar_ ? t->w : t->c) != 1) return false;
    }
    if (a_.holistic) return true;
    if ((planar_ ? a_.logits.w : a_.logits.c) != 1) return false;
    return !a_.grad_logits.data || (planar_ ? a_.grad_logits.w : a_.grad_logits.c) == 1;
  }

  bool stream_image(const Image& t, int64_t pixels) const {
    return worth_streaming<T>(t.data, {t.n, t.c, t.h, t.w}, a_.N * a_.C * pixels);
  }
  bool stream_map() const {
    const IndexMap& t = a_.grad_logits;
    return !a_.holistic && worth_streaming<T>(t.data, {t.n, t.c, t.k, t.h, t.w}, a_.N * a_.C * K * a_.h * a_.w);
  }

  unsigned present(int64_t i, int64_t j) const {
    const int64_t rows = a_.H - i * R, columns = a_.W - j * R;
    if (rows >= R && columns >= R) return kAll;
    unsigned out = 0;
    for (int k = 0; k < K; ++k) {
      if (k / R < rows && k % R < columns) out |= 1u << k;
    }
    return out;
  }

  // Cells from..to of row i in vectors, then the tail, then the cell that the right border cuts.
  template <class F>
  PYINDEXNET_INLINE void row_chunks(int64_t i, int64_t from, int64_t to, F f) const {
    const int64_t whole = to * R <= a_.W ? to : to - 1;
    const unsigned mask = a_.W >= R ? present(i, 0) : 0;  // of a cell that only the bottom border cuts
    int64_t j = from;
    if (unit_strides_ && mask == kAll) {
      for (; j + L <= whole; j += L) f(j, Fast<true>{});
    }
    while (j < to) {
      const int64_t left = whole - j;
      const Slow chunk = left > 0 ? Slow{static_cast<int>(left < L ? left : L), mask} : Slow{1, present(i, j)};
      f(j, chunk);
      j += chunk.count;
    }
  }
  template <class F>
  PYINDEXNET_INLINE void channel_chunks(unsigned present, F f) const {
    int64_t c = 0;
    if (unit_strides_ && present == kAll) {
      for (; c + L <= a_.C; c += L) f(c, Fast<false>{});
    }
    for (; c < a_.C; c += L) f(c, Slow{static_cast<int>(a_.C - c < L ? a_.C - c : L), present});
  }

  // --- addressing -------------------------------------------------------------------------------------------------------

  static T* data(const Image& t) { return static_cast<T*>(t.data); }
  PYINDEXNET_INLINE Lanes high(const Image& t, int64_t n, int64_t c, int64_t i, int64_t j) const {
    return {data(t) + n * t.n + c * t.c + i * R * t.h + j * R * t.w, t.h, t.w, planar_ ? R * t.w : t.c,
        planar_ ? rows_ahead_ * R * t.h : kElementsAhead};
  }
  PYINDEXNET_INLINE Lanes low(const Image& t, int64_t n, int64_t c, int64_t i, int64_t j) const {
    return {data(t) + n * t.n + c * t.c + i * t.h + j * t.w, 0, 0, planar_ ? t.w : t.c, planar_ ? 2 * rows_ahead_ * t.h : 0};
  }
  // along_w: lanes are cells of a row (always so for holistic maps), else channels.
  PYINDEXNET_INLINE Lanes map(const IndexMap& t, int64_t n, int64_t c, int64_t i, int64_t j, bool along_w) const {
    return {static_cast<T*>(t.data) + n * t.n + c * t.c + i * t.h + j * t.w, R * t.k, t.k, along_w ? t.w : t.c,
        along_w ? rows_ahead_ * t.h : kElementsAhead};
  }

  PYINDEXNET_INLINE static void put(T* p, V a, bool past_caches) {
    if (past_caches) {
      stream(p, a);
    } else {
      store(p, a);
    }
  }

  template <class Chunk>
  PYINDEXNET_INLINE void load_high(Lanes t, Chunk chunk, V (&out)[K]) const {
    if constexpr (Chunk::planar) {
      for (int dy = 0; dy < R; ++dy) {
        V in[R];
        for (int v = 0; v < R; ++v) {
          const T* p = t.p + dy * t.y + v * L;
          __builtin_prefetch(p + t.ahead);
          in[v] = load(p);
        }
        deinterleave<R>(in, out + dy * R);
      }
    } else {
      load_positions(t, chunk, out);
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE void store_high(Lanes t, Chunk chunk, const V (&in)[K]) const {
    if constexpr (Chunk::planar) {
      for (int dy = 0; dy < R; ++dy) {
        V out[R];
        interleave<R>(in + dy * R, out);
        for (int v = 0; v < R; ++v) put(t.p + dy * t.y + v * L, out[v], stream_high_);
      }
    } else {
      store_positions(t, chunk, chunk.present, in, stream_high_);
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE void load_positions(Lanes t, Chunk chunk, V (&out)[K]) const {
    for (int k = 0; k < K; ++k) {
      const T* p = t.p + k / R * t.y + k % R * t.x;
      if constexpr (Chunk::fast) {
        __builtin_prefetch(p + t.ahead);
        out[k] = load(p);
      } else {
        out[k] = (chunk.present >> k) & 1u ? V(load_lanes(p, t.lane, chunk.count)) : V(0);
      }
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE void store_positions(Lanes t, Chunk chunk, unsigned which, const V (&in)[K], bool past_caches) const {
    for (int k = 0; k < K; ++k) {
      T* p = t.p + k / R * t.y + k % R * t.x;
      if constexpr (Chunk::fast) {
        put(p, in[k], past_caches);
      } else if ((which >> k) & 1u) {
        store_lanes(p, t.lane, chunk.count, in[k]);
      }
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE V load_low(Lanes t, Chunk chunk) const {
    if constexpr (Chunk::fast) {
      if constexpr (Chunk::planar) __builtin_prefetch(t.p + t.ahead);
      return load(t.p);
    } else {
      return load_lanes(t.p, t.lane, chunk.count);
    }
  }
  template <class Chunk>
  PYINDEXNET_INLINE void store_low(Lanes t, Chunk chunk, V a) const {
    if constexpr (Chunk::fast) {
      put(t.p, a, stream_low_);
    } else {
      store_lanes(t.p, t.lane, chunk.count, a);
    }
  }
  // Logits of absent positions are read as 0, so that nothing they hold can leak; their gradient is written as 0.
  template <class Chunk>
  PYINDEXNET_INLINE void store_grad_logits(Lanes t, Chunk chunk, V (&d)[K]) const {
    if (chunk.present != kAll) {
      for (int k = 0; k < K; ++k) d[k] = (chunk.present >> k) & 1u ? d[k] : V(0);
    }
    store_positions(t, chunk, kAll, d, stream_map_);
  }
};

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
