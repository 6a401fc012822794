// SPDX-License-Identifier: Apache-2.0
// Index normalisation of one cell and its vector-Jacobian product. Equations: pyindexnet/reference/normalization.py.
// V is a scalar (CUDA, tails) or a SIMD vector of cells; it needs + - * and, found by argument-dependent look-up or
// declared before this header: exp_of, exp_unit (argument in [0, 1]), reciprocal, maximum.
#pragma once
#include "host_device.h"
#include "index_cell.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

template <int K>
PYINDEXNET_HOST_DEVICE constexpr unsigned all_present() {
  return (1u << K) - 1u;
}

template <class V>
PYINDEXNET_HOST_DEVICE V sigmoid(V a) {
  return reciprocal(V(1) + exp_of(V(0) - a));
}

PYINDEXNET_HOST_DEVICE constexpr bool one_present(unsigned present) {
  return (present & (present - 1u)) == 0;
}

// a <- softmax(a) over the positions in `present`; 0 elsewhere. kUnit: a lies in [0, 1], so no maximum is needed, except where
// one position is present: e^a / e^a rounds, and its logit would get a gradient; e^0 / e^0 is 1.
template <bool kUnit, int K, class V>
PYINDEXNET_HOST_DEVICE void softmax(V (&a)[K], unsigned present) {
  V sum(0);
  if constexpr (kUnit) {
    if (one_present(present)) return softmax<false>(a, present);
    for (int k = 0; k < K; ++k) {
      a[k] = (present >> k) & 1u ? exp_unit(a[k]) : V(0);
      sum = sum + a[k];
    }
  } else {
    V top = a[0];  // position 0 (the top left of the cell) is always inside the image
    for (int k = 1; k < K; ++k) top = (present >> k) & 1u ? maximum(top, a[k]) : top;
    for (int k = 0; k < K; ++k) {
      a[k] = (present >> k) & 1u ? exp_of(a[k] - top) : V(0);
      sum = sum + a[k];
    }
  }
  const V scale = reciprocal(sum);
  for (int k = 0; k < K; ++k) a[k] = a[k] * scale;
}

// a <- softmax(sigmoid(a)); csrc/cpu/simd.h has a shorter way for K = 4.
template <int K, class V>
PYINDEXNET_HOST_DEVICE void softmax_of_sigmoid(V (&a)[K], unsigned present) {
  for (int k = 0; k < K; ++k) a[k] = sigmoid(a[k]);
  softmax<true>(a, present);
}

// d <- z (d - sum_k z_k d_k), the vector-Jacobian product of the softmax with output z.
template <int K, class V>
PYINDEXNET_HOST_DEVICE void softmax_vjp(const V (&z)[K], V (&d)[K]) {
  V dot(0);
  for (int k = 0; k < K; ++k) dot = dot + z[k] * d[k];
  for (int k = 0; k < K; ++k) d[k] = z[k] * (d[k] - dot);
}

// a <- z(a). Absent positions may hold anything afterwards; callers never use them.
template <int K, class V>
PYINDEXNET_HOST_DEVICE void normalize(V (&a)[K], Normalization how, unsigned present) {
  if (how == Normalization::sigmoid) {
    for (int k = 0; k < K; ++k) a[k] = sigmoid(a[k]);
  } else if (how == Normalization::sigmoid_softmax) {
    one_present(present) ? softmax_of_sigmoid<K, V>(a, present) : softmax_of_sigmoid(a, present);
  } else if (how == Normalization::softmax || how == Normalization::softmax_sigmoid) {
    softmax<false>(a, present);
    if (how == Normalization::softmax_sigmoid) {
      for (int k = 0; k < K; ++k) a[k] = sigmoid(a[k]);
    }
  }
}

// a <- z(a) and d <- J(z)^T d. On entry d must be 0 at absent positions.
template <int K, class V>
PYINDEXNET_HOST_DEVICE void normalize_vjp(V (&a)[K], V (&d)[K], Normalization how, unsigned present) {
  if (how == Normalization::sigmoid) {
    for (int k = 0; k < K; ++k) {
      a[k] = sigmoid(a[k]);
      d[k] = d[k] * (a[k] * (V(1) - a[k]));
    }
  } else if (how == Normalization::softmax) {
    softmax<false>(a, present);
    softmax_vjp(a, d);
  } else if (how == Normalization::sigmoid_softmax) {
    V slope[K];
    for (int k = 0; k < K; ++k) {
      a[k] = sigmoid(a[k]);
      slope[k] = a[k] * (V(1) - a[k]);
    }
    softmax<true>(a, present);
    softmax_vjp(a, d);
    for (int k = 0; k < K; ++k) d[k] = d[k] * slope[k];
  } else if (how == Normalization::softmax_sigmoid) {
    softmax<false>(a, present);
    for (int k = 0; k < K; ++k) {
      const V z = sigmoid(a[k]);
      d[k] = d[k] * (z * (V(1) - z));
    }
    softmax_vjp(a, d);
    for (int k = 0; k < K; ++k) a[k] = sigmoid(a[k]);
  }
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
