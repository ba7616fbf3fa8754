// The C interface: what the shared library exports. No Python and no PyTorch symbol is linked, so that one build
// serves every version of both.
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "isa.h"
#include "parallel.h"

#if defined(__x86_64__)
VSSM_DECLARE_KERNELS(avx512)
VSSM_DECLARE_KERNELS(avx2)
#endif
VSSM_DECLARE_KERNELS(baseline)

namespace {

// Threads of our own, for a PyTorch that does not export its pool: blocked between calls, one call at a time.
class Pool {
 public:
  static Pool& get() {
    static Pool* pool = new Pool;  // never destroyed: its threads may outlive static destructors
    return *pool;
  }
  int threads = 1;

  void run(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
    std::lock_guard<std::mutex> one_call(call_);
    const int64_t parts = std::min<int64_t>(threads, count);
    while (int64_t(workers_.size()) < parts - 1) {
      workers_.emplace_back([this, index = int64_t(workers_.size()) + 1] { work(index); });
      workers_.back().detach();
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body, context_ = context, count_ = count, parts_ = parts, pending_ = parts - 1;
      generation_++;
    }
    wake_.notify_all();
    body(0, count / parts, context);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
  }

 private:
  void work(int64_t index) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (index >= parts_) continue;
      const int64_t begin = count_ * index / parts_, end = count_ * (index + 1) / parts_;
      auto body = body_;
      auto context = context_;
      lock.unlock();
      body(begin, end, context);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }
  std::mutex call_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  void (*body_)(int64_t, int64_t, void*) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0, parts_ = 0, pending_ = 0;
  uint64_t generation_ = 0;
};

int run_on_pool(int64_t begin, int64_t end, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  if (Pool::get().threads <= 1)
    body(begin, end, context);
  else
    Pool::get().run(end - begin, body, context);
  return 0;
}

struct Kernels {
  const char* name;
  void (*scan_forward)(const ScanArgs&);
  void (*scan_backward)(const ScanGradArgs&);
  int64_t (*scan_parts)(int64_t, int64_t, int64_t);
  void (*conv_forward)(const ConvArgs&);
  void (*conv_backward)(const ConvGradArgs&);
};
#define VSSM_KERNELS(isa) \
  { #isa, isa::scan_forward, isa::scan_backward, isa::scan_parts, isa::conv_forward, isa::conv_backward }

Kernels best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    return VSSM_KERNELS(avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return VSSM_KERNELS(avx2);
#endif
  return VSSM_KERNELS(baseline);
}
Kernels kernels = best();

// Whether every entry is -1 or a token: a wrong table must not read or write outside the tensors.
bool valid(const int32_t* table, int64_t count, int64_t tokens) {
  bool ok = true;
  for (int64_t i = 0; i < count; i++) ok &= table[i] >= -1 && table[i] < tokens;
  return ok;
}
bool valid(const ScanArgs& s) {
  const int64_t count = s.paths * s.steps;
  return !s.read || (valid(s.read, count, s.in_tokens) && valid(s.write, count, s.out_tokens));
}
bool valid(const ConvArgs& c) { return !c.read || valid(c.read, c.paths * c.steps, c.in_tokens); }

constexpr int64_t kMostTokens = INT32_MAX;
bool within(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

// Whether the sizes are some that the kernels are written for. The caller checks what it hands over; a size that
// belongs to no tensor must not become an address all the same.
bool fits(const ScanArgs& s) {
  return s.batch >= 0 && s.paths > 0 && s.groups > 0 && s.group_channels > 0 && s.d_state > 0 && s.dt_rank >= 0 &&
         within(s.tile, 1, kMostSteps) && within(s.steps, 1, kMostTokens) && within(s.in_tokens, 1, kMostTokens) &&
         within(s.out_tokens, 1, kMostTokens) && !s.read == !s.write &&
         (s.read || (s.steps == s.in_tokens && s.steps == s.out_tokens));
}
bool fits(const ConvArgs& c) {
  return c.batch >= 0 && c.paths > 0 && c.channels > 0 && within(c.width, 1, kMostTokens) &&
         within(c.steps, 1, kMostTokens) && within(c.in_tokens, 1, kMostTokens) && c.mirrored &&
         (c.read || c.steps == c.in_tokens);
}

enum Status : int64_t { kDone, kOutOfRange, kMisfit, kNoMemory };

template <class Args, class Kernel>
Status run(const Args& inputs, const Kernel& kernel) {
  if (!fits(inputs)) return kMisfit;
  if (!valid(inputs)) return kOutOfRange;
  try {
    kernel();
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  return kDone;
}

}  // namespace

vssm_parallel_for vssm_pool = run_on_pool;

extern "C" {

int64_t vssm_abi_version() { return 2; }
const char* vssm_isa() { return kernels.name; }

// Chooses an instruction set by name, for tests; 0 if this machine or build lacks it.
int64_t vssm_set_isa(const char* name) {
  const Kernels widest = best();
  const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  if (is(widest.name)) return kernels = widest, 1;
  if (is("baseline")) return kernels = VSSM_KERNELS(baseline), 1;
#if defined(__x86_64__)
  if (is("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return kernels = VSSM_KERNELS(avx2), 1;
#endif
  return 0;
}

void vssm_use_torch_threads(vssm_parallel_for torch_parallel_for) { vssm_pool = torch_parallel_for; }
void vssm_set_threads(int64_t threads) { Pool::get().threads = int(threads); }

// Whether each of `paths` rows of a table is known to hold each of the numbers below `steps` once.
int64_t vssm_each_once(const int32_t* table, int64_t paths, int64_t steps) {
  std::vector<uint8_t> seen;
  try {
    seen.resize(steps + 1);
  } catch (const std::bad_alloc&) {
    return 0;
  }
  for (int64_t k = 0; k < paths; k++, table += steps) {
    std::fill(seen.begin(), seen.end(), 0);
    for (int64_t i = 0; i < steps; i++) seen[std::min<uint64_t>(uint32_t(table[i]), steps)] = 1;
    int64_t met = 0;
    for (int64_t i = 0; i < steps; i++) met += seen[i];
    if (met != steps) return 0;
  }
  return 1;
}

// Each returns a Status.
int64_t vssm_scan_forward(const ScanArgs* s) {
  return run(*s, [&] { kernels.scan_forward(*s); });
}
int64_t vssm_scan_backward(const ScanGradArgs* q) {
  return run(q->scan, [&] { kernels.scan_backward(*q); });
}
int64_t vssm_scan_parts(int64_t batch, int64_t groups, int64_t group_channels) {
  return kernels.scan_parts(batch, groups, group_channels);
}
int64_t vssm_conv_forward(const ConvArgs* c) {
  return run(*c, [&] { kernels.conv_forward(*c); });
}
int64_t vssm_conv_backward(const ConvGradArgs* q) {
  return run(q->conv, [&] { kernels.conv_backward(*q); });
}
}
