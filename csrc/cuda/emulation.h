// SPDX-License-Identifier: Apache-2.0
// The subset of CUDA that the kernels use, on host threads: test builds compile the .cu sources with the host compiler.
// A block's threads are real threads, so that barriers, shuffles and shared memory behave (and race) as on a GPU, and
// sanitizers see them. Blocks run one after another.
#pragma once
#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "../common/host_device.h"

// Forced inlining of what nvcc inlines makes sanitizer builds take minutes.
#undef PYINDEXNET_HOST_DEVICE
#define PYINDEXNET_HOST_DEVICE inline

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;

// Read-only to the kernels, as on the device.
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace pyindexnet::cuda {

// Small blocks keep tests quick. All are launch parameters: the kernels read blockDim.
inline constexpr int kThreads = 64;
inline constexpr int kSlices = 4;
inline constexpr int64_t kFill = 256;

namespace emulation {

constexpr unsigned kWarp = 32;

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulation: %s\n", message);
  std::abort();
}

// A barrier that knows which threads have left the kernel: on a GPU a barrier that only some threads reach is an error.
class Barrier {
 public:
  void reset(unsigned threads) { threads_ = threads, arrived_ = left_ = 0; }

  void wait() {
    std::unique_lock lock(mutex_);
    if (left_ != 0) fail("a thread left the kernel before a barrier that others wait at");
    const uint64_t round = round_;
    if (++arrived_ == threads_) {
      arrived_ = 0, ++round_;
      passed_.notify_all();
    } else {
      passed_.wait(lock, [&] { return round_ != round; });
    }
  }

  void leave() {
    std::lock_guard lock(mutex_);
    ++left_;
    if (arrived_ != 0) fail("a thread left the kernel before a barrier that others wait at");
  }

 private:
  std::mutex mutex_;
  std::condition_variable passed_;
  unsigned threads_ = 0, arrived_ = 0, left_ = 0;
  uint64_t round_ = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t exchange[kWarp];
};

// Threads that live as long as the library and run the blocks of one launch after another.
class Pool {
 public:
  // One for all translation units, never destroyed: its threads wait in it until the process ends.
  static Pool& instance() {
    static Pool* pool = new Pool;
    return *pool;
  }

  void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
    const unsigned threads = block.x * block.y * block.z;
    if (threads == 0 || threads > 1024) fail("a block must have 1 to 1024 threads");
    if (grid.y > 65535 || grid.z > 65535) fail("grid axes 1 and 2 hold at most 65535 blocks");
    if (shared_bytes > 48 * 1024) fail("dynamic shared memory above 48 KiB needs an opt-in");
    std::lock_guard one_launch(launch_);
    while (workers_.size() < threads) {
      workers_.emplace_back(&Pool::work, this, static_cast<unsigned>(workers_.size()), ticket_);
      workers_.back().detach();
    }
    while (warps_.size() * kWarp < threads) warps_.push_back(std::make_unique<Warp>());
    {
      std::lock_guard lock(mutex_);  // workers that sat out the last block may still be looking
      grid_ = grid, block_ = block, threads_ = threads, kernel_ = &kernel;
    }
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) run_block(dim3(x, y, z), shared_bytes);
      }
    }
  }

  void barrier() { block_barrier_.wait(); }
  unsigned char* shared() { return shared_.get(); }

  uint64_t shuffle(uint64_t value, unsigned from) {
    const unsigned linear = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    if (linear / kWarp * kWarp + kWarp > threads_) fail("a shuffle with a full mask needs full warps");
    Warp& warp = *warps_[linear / kWarp];
    warp.exchange[linear % kWarp] = value;
    warp.barrier.wait();
    const uint64_t result = warp.exchange[from];
    warp.barrier.wait();
    return result;
  }

 private:
  void run_block(dim3 index, size_t shared_bytes) {
    // A fresh block of exactly the size asked for: the address sanitizer sees an overrun. Filled with NaN.
    shared_.reset(new unsigned char[std::max<size_t>(shared_bytes, 1)]);
    std::memset(shared_.get(), 0xff, shared_bytes);
    entry_.reset(threads_);
    block_barrier_.reset(threads_);
    for (unsigned w = 0; w * kWarp < threads_; ++w) warps_[w]->barrier.reset(std::min(kWarp, threads_ - w * kWarp));
    std::unique_lock lock(mutex_);
    index_ = index, running_ = threads_, ++ticket_;
    start_.notify_all();
    done_.wait(lock, [&] { return running_ == 0; });
  }

  // `seen`: the last ticket of before the thread began. It must not take that for its own: it would run the new kernel early,
  // and be counted out of a block that it was not counted into.
  void work(unsigned linear, uint64_t seen) {
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        start_.wait(lock, [&] { return ticket_ != seen; });
        seen = ticket_;
        if (linear >= threads_) continue;
        blockIdx = index_, blockDim = block_, gridDim = grid_;
      }
      threadIdx = dim3(linear % block_.x, linear / block_.x % block_.y, linear / (block_.x * block_.y));
      // All threads of the block exist before the first instruction of any: else one that starts late would be ordered
      // after the end of another by the locks here, and the thread sanitizer would miss their race.
      entry_.wait();
      (*kernel_)();
      block_barrier_.leave();
      warps_[linear / kWarp]->barrier.leave();
      std::lock_guard lock(mutex_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex launch_, mutex_;
  std::condition_variable start_, done_;
  std::vector<std::thread> workers_;
  std::vector<std::unique_ptr<Warp>> warps_;
  std::unique_ptr<unsigned char[]> shared_;
  Barrier entry_, block_barrier_;
  dim3 grid_, block_, index_;
  const std::function<void()>* kernel_ = nullptr;
  unsigned threads_ = 0, running_ = 0;
  uint64_t ticket_ = 0;
};

}  // namespace emulation

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
  ~DeviceGuard() {}
};

inline cudaStream_t current_stream() {
  return nullptr;
}

template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, const Args&... args) {
  emulation::Pool::instance().run(grid, block, shared_bytes, [&] { kernel(args...); });
}

}  // namespace pyindexnet::cuda

#define PYINDEXNET_DYNAMIC_SHARED(T, name) \
  T* const name = reinterpret_cast<T*>(pyindexnet::cuda::emulation::Pool::instance().shared())

#define PYINDEXNET_DISPATCH_KEY CPU
#define PYINDEXNET_OP(name) name "_emulated"

inline void __syncthreads() {
  pyindexnet::cuda::emulation::Pool::instance().barrier();
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  using namespace pyindexnet::cuda::emulation;
  if (mask != 0xffffffffu) fail("only the full mask is emulated");
  const unsigned linear = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = Pool::instance().shuffle(bits, (linear ^ static_cast<unsigned>(lane_mask)) % kWarp);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
