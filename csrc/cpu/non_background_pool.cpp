// SPDX-License-Identifier: Apache-2.0
// non_background_pool and its backward, CPU: scratch memory, work items, threads. Equation:
// pyindexnet/reference/non_background_pool.py; kernels: csrc/cpu/isa/non_background_pool.cpp.
#include "non_background_pool.h"

#include <algorithm>
#include <atomic>

#include "../common/non_background_pool_host.h"
#include "isa.h"
#include "window_scratch.h"

PYINDEXNET_ISA_KERNEL(non_background_pool_items, const PoolWork&, PoolStep, int64_t, int64_t, void*)

namespace pyindexnet {
namespace {

constexpr int64_t kBandBytes = int64_t{384} << 10;            // of scratch for a band of rows of one channel
constexpr int64_t kChannelsLastBandBytes = int64_t{4} << 20;  // of 64 bytes of channels
constexpr int64_t kWideBytes = int64_t{1} << 20;
constexpr int64_t kPastCachesBytes = int64_t{16} << 20;
constexpr int64_t kPixelsOfTask = 32768;  // fewer are not worth a thread

struct Cpu {
  static int guard(const Tensor&) { return 0; }

  static Tensor scratch(const Tensor& like, int64_t elements, int64_t count = 1) {
    using torch::headeronly::ScalarType;
    const auto dtype = like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    const int64_t size[] = {count, elements};
    return torch::stable::empty({size, 2}, dtype, std::nullopt, like.device());
  }

  static PoolWork plan(const PoolArgs& a, bool backward) {
    PoolWork work;
    work.args = a;
    const int64_t wanted = backward ? 32 : a.channels_last ? 64 : 1;
    work.group = std::min(wanted, a.chunk);
    work.groups = (a.chunk + work.group - 1) / work.group;
    int64_t k = 1;
    for (int64_t s = 0; s < a.windows; ++s) k = std::max(k, std::min(a.kernel_size[s], 2 * a.H - 1));
    const int64_t element = a.dtype == DType::float64 ? 8 : 4;
    const int64_t row = a.W * (a.channels_last ? 64 : element);
    const int64_t budget = a.channels_last ? kChannelsLastBandBytes : kBandBytes;
    // A band reads k - 1 rows more than it has, so it should have at least k.
    const int64_t most = std::min(a.H, std::max(budget / row - (k - 1), k));
    work.bands = (a.H + most - 1) / most;
    work.rows = (a.H + work.bands - 1) / work.bands;
    work.bands = (a.H + work.rows - 1) / work.rows;
    const int64_t size = a.dtype == DType::float64 ? 8 : a.dtype == DType::float32 ? 4 : 2;
    // Two vectors of channels at a time leave the scratch memory of most maps in the L2 cache. Four where it is small, and
    // where the image is so large that each visit of a pixel costs a translation of its address.
    const bool small = 4 * (work.rows + k) * row <= kWideBytes;
    work.width = small || a.C * a.H * a.W * size >= kPastCachesBytes ? 4 : 2;
    work.past_caches = a.N * a.C * a.H * a.W * size >= kPastCachesBytes;
    return work;
  }

  static int64_t thread_elements(const PoolWork& work) {
    const PoolArgs& a = work.args;
    const int64_t k = *std::max_element(a.kernel_size, a.kernel_size + a.windows), bytes = a.dtype == DType::float64 ? 8 : 4;
    const int64_t lanes = kScratchBytes / bytes;
    // The map of the mask is summed whole, behind a row of counts.
    const int64_t map = window_scratch(a.H, a.W, k, a.H, 0, bytes) + a.W + 2 * lanes;
    const int64_t band = window_scratch(a.H, a.W, k, work.rows, a.channels_last ? work.width : 0, bytes);
    return (std::max(map, band) + lanes - 1) / lanes * lanes;
  }

  static void run(const PoolWork& work, PoolStep step, int64_t items, int64_t pixels, Tensor& scratch) {
    const auto kernel = select_non_background_pool_items();
    const int64_t grain = std::max<int64_t>(1, kPixelsOfTask / pixels);
    char* const memory = static_cast<char*>(scratch.mutable_data_ptr());
    const int64_t bytes = scratch.stride(0) * (work.args.dtype == DType::float64 ? 8 : 4), slots = scratch.size(0);
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
      const int64_t slot = next++;  // one call per thread at most
      STD_TORCH_CHECK(slot < slots, "non_background_pool: more tasks than threads");
      kernel(work, step, begin, end, memory + slot * bytes);
    });
  }

  static void main_step(PoolWork& work, PoolStep step, const Tensor& x) {
    const PoolArgs& a = work.args;
    const int64_t map = a.H * a.W;
    Tensor maps = scratch(x, a.N * (1 + a.windows) * map);
    work.weights = maps.mutable_data_ptr();
    const int64_t bytes = (a.dtype == DType::float64 ? 8 : 4) * a.N * map;
    work.inverse = static_cast<char*>(work.weights) + bytes;
    Tensor memory = scratch(x, thread_elements(work), torch::stable::get_num_threads());
    run(work, PoolStep::weights, a.N, map, memory);
    run(work, PoolStep::denominators, a.N * a.windows, map, memory);
    run(work, step, a.N * a.windows * work.groups * work.bands, work.group * work.rows * a.W, memory);
    if (!work.partial) return;
    run(work, PoolStep::reduce, a.N * a.windows, map * work.groups, memory);
    run(work, PoolStep::grad_mask, a.N, map, memory);
  }

  static void forward(const PoolArgs& a, const Tensor& x) {
    PoolWork work = plan(a, false);
    main_step(work, PoolStep::forward, x);
  }

  static void backward(const PoolArgs& a, const Tensor& x) {
    PoolWork work = plan(a, true);
    Tensor partial;
    if (a.grad_mask.data) {
      partial = scratch(x, a.N * a.windows * work.groups * 2 * a.H * a.W);
      work.partial = partial.mutable_data_ptr();
    }
    main_step(work, PoolStep::gradients, x);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyindexnet, CPU, m) {
  m.impl("non_background_pool", TORCH_BOX(&non_background_pool<Cpu>));
  m.impl("non_background_pool_backward", TORCH_BOX(&non_background_pool_backward<Cpu>));
}

}  // namespace pyindexnet
