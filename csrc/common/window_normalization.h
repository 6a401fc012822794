// SPDX-License-Identifier: Apache-2.0
// Normalisation over many taps: index_normalization.h with the taps in memory instead of registers, up to 14 * 14 of them.
// `Taps` gives get(t) -> V and set(t, V).
#pragma once
#include "index_normalization.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

// a <- softmax(a). kUnit: a lies in [0, 1], so no maximum is needed, except for a single tap: see softmax().
template <bool kUnit, class V, class Taps>
PYINDEXNET_HOST_DEVICE void softmax_taps(Taps a, int taps) {
  if (kUnit && taps == 1) return softmax_taps<false, V>(a, taps);
  V top = a.get(0), sum(0);
  if constexpr (!kUnit) {
    for (int t = 1; t < taps; ++t) top = maximum(top, a.get(t));
  }
  for (int t = 0; t < taps; ++t) {
    V e;
    if constexpr (kUnit) {
      e = exp_unit(a.get(t));
    } else {
      e = exp_of(a.get(t) - top);
    }
    a.set(t, e);
    sum = sum + e;
  }
  const V factor = reciprocal(sum);
  for (int t = 0; t < taps; ++t) a.set(t, a.get(t) * factor);
}

template <class V, class Taps>
PYINDEXNET_HOST_DEVICE void sigmoid_taps(Taps a, int taps) {
  for (int t = 0; t < taps; ++t) a.set(t, sigmoid(V(a.get(t))));
}

// a <- z(a)
template <class V, class Taps>
PYINDEXNET_HOST_DEVICE void normalize_taps(Taps a, int taps, Normalization how) {
  if (how == Normalization::sigmoid || how == Normalization::sigmoid_softmax) sigmoid_taps<V>(a, taps);
  if (how == Normalization::sigmoid_softmax) softmax_taps<true, V>(a, taps);
  if (how == Normalization::softmax || how == Normalization::softmax_sigmoid) softmax_taps<false, V>(a, taps);
  if (how == Normalization::softmax_sigmoid) sigmoid_taps<V>(a, taps);
}

// d <- p (d - sum p d)
template <class V, class Taps>
PYINDEXNET_HOST_DEVICE void softmax_vjp_taps(Taps p, Taps d, int taps) {
  V dot(0);
  for (int t = 0; t < taps; ++t) dot = dot + p.get(t) * d.get(t);
  for (int t = 0; t < taps; ++t) d.set(t, p.get(t) * (d.get(t) - dot));
}

// d <- d s (1 - s), s = sigmoid(a)
template <class V, class Taps>
PYINDEXNET_HOST_DEVICE void sigmoid_vjp_taps(Taps a, Taps d, int taps) {
  for (int t = 0; t < taps; ++t) {
    const V s = sigmoid(V(a.get(t)));
    d.set(t, d.get(t) * (s * (V(1) - s)));
  }
}

// d <- J(z(a))^T d; a is used up.
template <class V, class Taps>
PYINDEXNET_HOST_DEVICE void normalize_vjp_taps(Taps a, Taps d, int taps, Normalization how) {
  if (how == Normalization::sigmoid) {
    sigmoid_vjp_taps<V>(a, d, taps);
  } else if (how == Normalization::softmax) {
    softmax_taps<false, V>(a, taps);
    softmax_vjp_taps<V>(a, d, taps);
  } else if (how == Normalization::sigmoid_softmax) {
    // The sigmoids stay in memory, for their slopes; the exponentials are computed twice.
    sigmoid_taps<V>(a, taps);
    if (taps == 1) return d.set(0, V(0) * a.get(0));  // its weight is 1, whatever its logit
    V sum(0), dot(0);
    for (int t = 0; t < taps; ++t) {
      const V e = exp_unit(V(a.get(t)));
      sum = sum + e;
      dot = dot + e * d.get(t);
    }
    const V factor = reciprocal(sum);
    dot = dot * factor;
    for (int t = 0; t < taps; ++t) {
      const V s = a.get(t);
      d.set(t, (s * (V(1) - s)) * (exp_unit(s) * factor) * (d.get(t) - dot));
    }
  } else if (how == Normalization::softmax_sigmoid) {
    softmax_taps<false, V>(a, taps);
    sigmoid_vjp_taps<V>(a, d, taps);
    softmax_vjp_taps<V>(a, d, taps);
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
