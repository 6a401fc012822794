// SPDX-License-Identifier: Apache-2.0
// Sums over all windows of one length along a line, at a cost per element that does not depend on the length, without
// subtraction (a running sum that subtracts what leaves the window drifts, and leaves a residue where the window holds only
// zeros).
//
// Positions are cut into blocks of k, the length. A window that starts inside a block is the end of that block and the start of
// the next: a suffix sum and a prefix sum, each begun afresh in every block. Three additions per element and no sum of more
// than k terms.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace pyindexnet {
inline namespace PYINDEXNET_ISA {

// sum(p) of the elements p ... p + k - 1 for p = 0 ... n - 1, of those that exist: lo ... hi - 1 (lo < k, hi >= n, and hi > 0).
//   get(p): element or what put() left there; put(p, sum): may overwrite it; out(p, sum): may overwrite position p too.
template <class V, class Index, class Get, class Put, class Out>
PYINDEXNET_HOST_DEVICE void window_sums(Index k, Index lo, Index hi, Index n, Get get, Put put, Out out) {
  for (Index start = 0; start < n; start += k) {
    const Index stop = start + k < n ? start + k : n;
    const Index last = start + k < hi ? start + k : hi;
    Index p = last - 1;
    V sum(0);
    for (; p >= start && p >= lo; --p) {
      sum = sum + get(p);
      put(p, sum);
    }
    for (p = p < stop ? p : stop - 1; p >= start; --p) put(p, sum);  // windows that begin before the first element
    out(start, get(start));
    const Index reach = hi - k + 1 < stop ? hi - k + 1 : stop;
    sum = V(0);
    for (p = start + 1; p < reach; ++p) {
      sum = sum + get(p + k - 1);
      out(p, get(p) + sum);
    }
    for (; p < stop; ++p) out(p, get(p) + sum);
  }
}

// A window along an axis of `size` elements, for outputs first ... first + count - 1: its length, cut to what the axis can
// fill, and the positions of window_sums(): position p is element top + p.
template <class Index>
struct Reach {
  Index radius, k, top, lo, hi;
  PYINDEXNET_HOST_DEVICE Reach(Index size, int64_t kernel_size, Index first, Index count) {
    radius = kernel_size / 2 < size - 1 ? static_cast<Index>(kernel_size / 2) : size - 1;
    k = 2 * radius + 1;
    top = first - radius;
    lo = top < 0 ? -top : 0;
    hi = (count + radius < size - first ? first + count + radius : size) - top;
  }
};

// Pixels that an average over the window of pixel i divides by along one axis.
PYINDEXNET_HOST_DEVICE int64_t window_count(int64_t i, int64_t size, int64_t kernel_size, bool include_pad) {
  const int64_t r = kernel_size / 2;
  return include_pad ? kernel_size : (i + r < size ? i + r : size - 1) - (i > r ? i - r : 0) + 1;
}

}  // namespace PYINDEXNET_ISA
}  // namespace pyindexnet
