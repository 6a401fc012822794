// SPDX-License-Identifier: Apache-2.0
// Runs affinity_map and affinity_moments on the CPU: bands, scratch memory, threads. Kernels: csrc/cpu/isa/encoding.cpp.
#pragma once
#include <algorithm>
#include <atomic>

#include "../common/encoding_host.h"
#include "encoding.h"
#include "isa.h"

PYINDEXNET_ISA_KERNEL(encoding_items, const EncodingWork&, EncodingStep, int64_t, int64_t, void*)

namespace pyindexnet {

class EncodingDevice {
  static constexpr int64_t kPlaneBytes = int64_t{256} << 10;  // of a channel's rows of x in scratch memory
  static constexpr int64_t kBlockBytes = int64_t{1} << 20;    // of all channels' of a block
  static constexpr int64_t kChannels = 16;                    // of a block where they are neighbours in memory

  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
  static int64_t element(const EncodingArgs& a) { return a.dtype == DType::float64 ? 8 : 4; }

  static Tensor scratch(const EncodingArgs& a, const Tensor& like, int64_t count, int64_t elements) {
    using torch::headeronly::ScalarType;
    const int64_t size[] = {count, elements};
    return torch::stable::empty(
        {size, 2}, a.dtype == DType::float64 ? ScalarType::Double : ScalarType::Float, std::nullopt, like.device());
  }

  // `parts`: bands wanted of an image. Sums over a band are results, so only a step that has none may ask for the number of
  // threads.
  static EncodingWork plan(const EncodingArgs& a, int64_t parts) {
    EncodingWork work;
    work.args = a;
    work.block = a.x.c == 1 && a.C > 1 ? kChannels : 1;
    const int64_t row = a.stride * a.stride * work.pitch() * element(a);  // of x for a row of positions
    const int64_t budget = work.block == 1 ? kPlaneBytes : kBlockBytes / work.block;
    const int64_t most = std::max<int64_t>(budget / row, 4);
    work.bands = std::max(ceil_div(a.h, most), std::min(parts, ceil_div(a.h, 4)));
    work.rows = ceil_div(a.h, work.bands);
    work.bands = ceil_div(a.h, work.rows);
    return work;
  }

  static void run(const EncodingWork& work, EncodingStep step, int64_t items, Tensor& memory) {
    const auto kernel = select_encoding_items();
    char* const base = static_cast<char*>(memory.mutable_data_ptr());
    const int64_t bytes = memory.stride(0) * element(work.args), slots = memory.size(0);
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
      const int64_t slot = next++;  // one call per thread at most
      STD_TORCH_CHECK(slot < slots, "pyindexnet: more tasks than threads");
      kernel(work, step, begin, end, base + slot * bytes);
    });
  }

  static Tensor thread_memory(const EncodingWork& work, const Tensor& x) {
    return scratch(work.args, x, torch::stable::get_num_threads(), work.scratch_elements());
  }

  static Tensor partial(EncodingWork& work, const Tensor& x, bool gradients) {
    const EncodingArgs& a = work.args;
    Tensor memory = scratch(a, x, a.N * a.C * work.bands, work.record(gradients));
    work.partial = memory.mutable_data_ptr();
    return memory;
  }

  static int64_t blocks(const EncodingWork& work) { return work.args.N * ceil_div(work.args.C, work.block) * work.bands; }

  static void moments(EncodingWork& work, const Tensor& x, Tensor& memory) {
    const Tensor keep = partial(work, x, false);
    run(work, EncodingStep::moments, blocks(work), memory);
    run(work, EncodingStep::combine, work.args.N * work.args.groups, memory);
  }

 public:
  static int guard(const Tensor&) { return 0; }

  static void forward(const EncodingArgs& a, const Tensor& x) {
    EncodingWork work = plan(a, a.is_moments ? 1 : ceil_div(4 * torch::stable::get_num_threads(), a.N));
    Tensor memory = thread_memory(work, x);
    if (a.is_moments) return moments(work, x, memory);
    run(work, EncodingStep::map, a.N * work.bands, memory);
  }

  static void backward(const EncodingArgs& a, const Tensor& x) {
    EncodingWork work = plan(a, 1);
    Tensor memory = thread_memory(work, x), means;
    if (a.is_moments) {
      means = scratch(a, x, a.N * a.groups, 2 * a.d);
      work.means = means.mutable_data_ptr();
      moments(work, x, memory);
    }
    const Tensor keep = partial(work, x, true);
    run(work, EncodingStep::gradients, blocks(work), memory);
    if (a.need_kernels()) run(work, EncodingStep::grad_kernels, a.Nu * a.Cu, memory);
    if (a.grad_affine.data) run(work, EncodingStep::grad_affine, a.N * a.C, memory);
  }
};

}  // namespace pyindexnet
