// SPDX-License-Identifier: Apache-2.0
// Logits of low rank and their gradients, CPU: a row of cells at a time, in the scratch memory of csrc/cpu/window.h.
// Equations: csrc/common/window.h. A vector is a run of cells, the generator's numbers are scalars. Fixed orders of summation:
// grad_a over the groups, taps and sub-positions; grad_p over a row of cells here, over the rows in sum_parts().
#pragma once
#include "../common/window_normalization.h"
#include "window_plan.h"
#include "window_rows.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

template <class T>
class AffinityLogits : WindowRows<T> {
  using Rows = WindowRows<T>;
  using Rows::L;
  using typename Rows::A, typename Rows::V;

  const WindowArgs& a_;
  const int64_t pitch_, rank_, outputs_, tile_, tiles_, band_rows_;
  A *const p_, *const map_, *const grad_;  // [group][t, s][d]; [d][pitch]; [row of the band][d][pitch]
  int64_t first_ = -1, sample_ = -1;       // the group and sample that p_ begins with

 public:
  AffinityLogits(const WindowArgs& a, const WindowPlan& plan, A* scratch)
      : a_(a),
        pitch_(plan.pitch()),
        rank_(a.rank),
        outputs_(a.group_logits()),
        tile_(plan.tile),
        tiles_(plan.tiles),
        band_rows_(plan.band_rows),
        p_(scratch),
        map_(p_ + plan.generator_elements(a)),
        grad_(map_ + plan.map_elements(a)) {}

  // Widens what `groups` groups of a sample need of p.
  void generate(int64_t n, int64_t group, int64_t groups) {
    if (n == sample_ && group == first_) return;
    sample_ = n, first_ = group;
    for (int64_t c = 0; c < groups * outputs_; ++c) {
      const T* from = static_cast<const T*>(a_.p.data) + n * a_.p.n + (group * outputs_ + c) * a_.p.c;
      for (int64_t e = 0; e < rank_; ++e) p_[c * rank_ + e] = load_lanes(from + e * a_.p.d, 1, 1).v[0];
    }
  }

  // Of row i, cells [from, to): out[(t * S + s) * pitch + cell - from], 0 outside the grid.
  __attribute__((noinline)) void logits(int64_t n, int64_t g, int64_t i, int64_t from, int64_t to, A* out) const {
    map_row(n, i, from, to);
    const A* p = p_ + (g - first_) * outputs_ * rank_;
    if (rank_ == 1) {
      for (int64_t c = 0; c < outputs_; ++c) {
        const V factor(p[c]);
        for (int64_t j = 0; j < to - from; j += L) store(out + c * pitch_ + j, factor * load(map_ + j));
      }
      return;
    }
    for (int64_t c = 0; c < outputs_; ++c, p += rank_) {
      for (int64_t j = 0; j < to - from; j += L) {
        V sum = V(p[0]) * load(map_ + j);
        for (int64_t e = 1; e < rank_; ++e) sum = sum + V(p[e]) * load(map_ + e * pitch_ + j);
        store(out + c * pitch_ + j, sum);
      }
    }
  }

  // Normalised, in the same order: from the map to the weights in registers.
  __attribute__((noinline)) void weights(int64_t n, int64_t g, int64_t i, int64_t from, int64_t to, A* out) const {
    map_row(n, i, from, to);
    const A* p = p_ + (g - first_) * outputs_ * rank_;
    rank_ == 1 ? weigh<true>(p, from, to, out) : weigh<false>(p, from, to, out);
  }

  // What grad_logits[(t * S + s) * pitch + cell - column] of row i, cells [column, to), give to grad_a and grad_p. The groups
  // of a band come one after another, the last of them writes grad_a.
  __attribute__((noinline)) void gradients(
      int64_t n, int64_t g, int64_t i, int64_t band, int64_t column, int64_t to, const A* grad_logits) const {
    if (a_.grad_a.data) map_gradient(n, g, i, band, column, to, grad_logits);
    if (a_.parts) generator_gradient(n, g, i, column, to, grad_logits);
  }

 private:
  template <bool kRankOne>
  PYINDEXNET_INLINE void weigh(const A* p, int64_t from, int64_t to, A* out) const {
    const int64_t taps = a_.taps(), subs = outputs_ / taps, step = subs * pitch_;
    for (int64_t j = 0; j < to - from; j += L) {
      if (from + j < 0 || from + j >= a_.w) {
        for (int64_t c = 0; c < outputs_; ++c) store(out + c * pitch_ + j, V(A(0)));
        continue;
      }
      const V first = load(map_ + j);
      for (int64_t s = 0; s < subs; ++s) {
        const auto logit = [&](int64_t t) PYINDEXNET_LAMBDA_INLINE {
          const A* of_tap = p + (t * subs + s) * rank_;
          V sum = V(of_tap[0]) * first;
          for (int64_t e = 1; !kRankOne && e < rank_; ++e) sum = sum + V(of_tap[e]) * load(map_ + e * pitch_ + j);
          return sum;
        };
        weigh_cells(logit, taps, out + s * pitch_ + j, step);
      }
    }
  }

  // The weights of L cells, tap t at out[t * step].
  template <class F>
  PYINDEXNET_INLINE void weigh_cells(F logit, int64_t taps, A* out, int64_t step) const {
    const auto all = [&](auto f) PYINDEXNET_LAMBDA_INLINE {
      for (int64_t t = 0; t < taps; ++t) store(out + t * step, f(t));
    };
    V sum(A(0));
    switch (a_.normalization) {
      case Normalization::none:
        return all(logit);
      case Normalization::sigmoid:
        return all([&](int64_t t) PYINDEXNET_LAMBDA_INLINE { return sigmoid(logit(t)); });
      case Normalization::sigmoid_softmax:
        if (taps == 1) return all([&](int64_t t) PYINDEXNET_LAMBDA_INLINE { return V(A(1)) + V(A(0)) * sigmoid(logit(t)); });
        all([&](int64_t t) PYINDEXNET_LAMBDA_INLINE {
          const V e = exp_unit(sigmoid(logit(t)));
          sum = sum + e;
          return e;
        });
        break;
      default:
        V top = logit(0);
        for (int64_t t = 1; t < taps; ++t) top = maximum(top, logit(t));
        all([&](int64_t t) PYINDEXNET_LAMBDA_INLINE {
          const V e = exp_of(logit(t) - top);
          sum = sum + e;
          return e;
        });
    }
    const V factor = reciprocal(sum);
    if (a_.normalization == Normalization::softmax_sigmoid) {
      return all([&](int64_t t) PYINDEXNET_LAMBDA_INLINE { return sigmoid(V(load(out + t * step)) * factor); });
    }
    all([&](int64_t t) PYINDEXNET_LAMBDA_INLINE { return V(load(out + t * step)) * factor; });
  }

  void map_row(int64_t n, int64_t i, int64_t from, int64_t to) const {
    for (int64_t e = 0; e < rank_; ++e) {
      const T* row = static_cast<const T*>(a_.a.data) + n * a_.a.n + e * a_.a.d + i * a_.a.h;
      Rows::template copy_row<1>(row, i < a_.h, a_.a.w, a_.a.w, a_.w, from, to, map_ + e * pitch_, pitch_);
    }
  }

  void map_gradient(int64_t n, int64_t g, int64_t i, int64_t band, int64_t column, int64_t to, const A* grad_logits) const {
    const A* p = p_ + (g - first_) * outputs_ * rank_;
    for (int64_t e = 0; e < rank_; ++e) {
      A* of_band = grad_ + ((i - band) * rank_ + e) * pitch_ - column;
      T* out = static_cast<T*>(a_.grad_a.data) + n * a_.grad_a.n + e * a_.grad_a.d + i * a_.grad_a.h;
      for (int64_t j = column; j < to; j += L) {
        V sum = g ? load(of_band + j) : V(A(0));
        for (int64_t c = 0; c < outputs_; ++c) {
          sum = sum + V(p[c * rank_ + e]) * load(grad_logits + c * pitch_ + j - column);
        }
        if (g + 1 < a_.G) {
          store(of_band + j, sum);
        } else {
          const V values[1] = {sum};
          Rows::template store_columns<1>(out, a_.grad_a.w, a_.grad_a.w, j, a_.w, values, false);
        }
      }
    }
  }

  void generator_gradient(int64_t n, int64_t g, int64_t i, int64_t column, int64_t to, const A* grad_logits) const {
    const int64_t part = i * tiles_ + column / tile_, count = to - column, whole = count / L * L;
    A* out = static_cast<A*>(a_.parts) + (n * a_.count_parts + part) * rank_ * a_.G * outputs_ + g * outputs_;
    map_row(n, i, column, to);
    for (int64_t e = 0; e < rank_; ++e) {
      const A* map = map_ + e * pitch_;
      for (int64_t c = 0; c < outputs_; ++c) {
        const A* of_logit = grad_logits + c * pitch_;
        V sum(A(0));
        for (int64_t j = 0; j < whole; j += L) sum = sum + load(map + j) * load(of_logit + j);
        if (whole < count) {
          // Lanes outside the grid may hold what pixels that no cell reads made of a gradient of 0.
          const int lanes = static_cast<int>(count - whole);
          sum = sum + load(map + whole) * load_lanes(of_logit + whole, 1, lanes);
        }
        A total = 0;
        for (int l = 0; l < L; ++l) total += sum.v[l];
        out[e * a_.G * outputs_ + c] = total;
      }
    }
  }
};

// grad_p from its parts: over the rows and tiles of a sample, and over the samples where they share it.
template <class T>
void sum_generator_parts(const WindowArgs& a) {
  using A = typename Accumulate<T>::type;
  using V = Vec<A>;
  const int64_t channels = a.G * a.group_logits(), row = a.rank * channels;
  const int64_t parts = a.shared_p ? a.N * a.count_parts : a.count_parts;
  for (int64_t n = 0; n < (a.shared_p ? 1 : a.N); ++n) {
    for (int64_t e = 0; e < a.rank; ++e) {
      for (int64_t c = 0; c < channels; c += V::size) {
        const int lanes = static_cast<int>(channels - c < V::size ? channels - c : V::size);
        const A* part = static_cast<const A*>(a.parts) + n * parts * row + e * channels + c;
        V sum(A(0));
        for (int64_t i = 0; i < parts; ++i) sum = sum + V(load_lanes(part + i * row, 1, lanes));
        T* out = static_cast<T*>(a.grad_p.data) + n * a.grad_p.n + e * a.grad_p.d + c * a.grad_p.c;
        store_lanes(out, a.grad_p.c, lanes, sum);
      }
    }
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
