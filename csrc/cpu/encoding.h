// SPDX-License-Identifier: Apache-2.0
// What csrc/cpu/encoding_device.h (memory, threads) and csrc/cpu/isa/encoding.cpp (kernels) share.
#pragma once
#include "../common/encoding.h"

namespace pyindexnet {

// What one call of the kernel does, and what its items are.
enum class EncodingStep : int32_t {
  map,           // (n, band): a, all channels
  moments,       // (n, channel block, band): mean and sum of squared deviations of the band, into `partial`
  combine,       // (n, group): moments of the group, into args.moments or, where `means` is there, the means into that
  gradients,     // (n, channel block, band): grad_x; sums over the band for the kernels and affine, into `partial`
  grad_kernels,  // (sample of u, channel of u): grad_u, grad_v
  grad_affine    // (n, c)
};

struct EncodingWork {
  EncodingArgs args;
  void* partial = nullptr;      // [N, C, bands, record], accumulators
  void* means = nullptr;        // [N, groups, d, e], accumulators: backward of the moments
  int64_t rows = 1, bands = 1;  // positions of a band, in rows
  int64_t block = 1;            // channels of an item and of the scratch memory at a time

  // Rows of positions below and above a band whose windows reach the band's pixels.
  int64_t halo_low() const { return (args.k - 1 - args.before() + args.stride - 1) / args.stride; }
  int64_t halo_high() const { return (args.before() + args.stride - 1) / args.stride; }

  // A row of scratch memory: kMargin columns, the w positions in whole groups of 16, kMargin columns. A row of x has `stride`
  // of them, of columns that are equal modulo the stride.
  static constexpr int64_t kMargin = 16;  // no less than any window reaches beyond its position
  int64_t columns() const { return (args.w + 15) / 16 * 16; }
  int64_t pitch() const { return columns() + 2 * kMargin; }
  int64_t x_rows(bool halo) const {
    const int64_t most = rows + (halo ? halo_low() + halo_high() : 0);
    const int64_t window = args.k > args.stride ? args.k : args.stride;
    return (most - 1) * args.stride + window;
  }
  int64_t x_plane(bool halo) const { return x_rows(halo) * args.stride * pitch(); }
  int64_t encoding_rows() const { return rows + halo_low() + halo_high(); }

  // Of a channel's record: both sets of kernels and affine, or the moments of a band.
  int64_t record(bool gradients) const {
    if (!gradients) return 4 * args.d;
    return 2 * args.d * args.taps() + 4 * args.d;
  }

  // Parts of a thread's scratch memory, in accumulators: x, encodings or sums, kernels.
  int64_t x_elements(bool halo) const { return block * x_plane(halo); }
  int64_t encoding_elements() const { return 2 * args.d * encoding_rows() * pitch(); }
  int64_t kernel_elements() const { return (2 * args.d * args.taps() + 15) / 16 * 16; }
  int64_t scratch_elements() const { return x_elements(true) + encoding_elements() + kernel_elements(); }
};

}  // namespace pyindexnet
