// Loops over independent work items, on PyTorch's own threads where it lends them.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>

// Signature of libtorch's C symbol `torch_parallel_for` (PyTorch 2.10 and later). A second thread pool (OpenMP, say)
// beside PyTorch's would have both spin for the same cores.
typedef int (*vssm_parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                                 void* context);

extern vssm_parallel_for vssm_pool;  // one of: libtorch's, the fallback in library.cpp

// Calls body(0) to body(count - 1). Throws std::bad_alloc where one of them does: an exception must not leave a thread
// of the pool.
template <class Body>
static void parallel(int64_t count, const Body& body) {
  if (count <= 1) {
    for (int64_t i = 0; i < count; i++) body(i);
    return;
  }
  struct Loop {
    const Body& body;
    std::atomic<bool> failed{false};
  } loop{body};
  const int status = vssm_pool(
      0, count, 1,
      [](int64_t begin, int64_t end, void* context) {
        Loop& loop = *static_cast<Loop*>(context);
        try {
          for (int64_t i = begin; i < end; i++) loop.body(i);
        } catch (const std::bad_alloc&) {
          loop.failed = true;
        }
      },
      &loop);
  if (status || loop.failed) throw std::bad_alloc();
}
