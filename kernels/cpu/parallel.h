// Loops over independent work items, on PyTorch's own threads where it lends them.
#pragma once

#include <cstdint>

// Signature of libtorch's C symbol `torch_parallel_for` (PyTorch 2.10 and later). A second thread pool (OpenMP, say)
// beside PyTorch's would have both spin for the same cores.
typedef int (*vssm_parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                                 void* context);

extern vssm_parallel_for vssm_pool;  // one of: libtorch's, the fallback in library.cpp

template <class Body>
static void parallel(int64_t count, const Body& body) {
  if (count <= 1) {
    for (int64_t i = 0; i < count; i++) body(i);
    return;
  }
  vssm_pool(
      0, count, 1,
      [](int64_t begin, int64_t end, void* context) {
        for (int64_t i = begin; i < end; i++) (*static_cast<const Body*>(context))(i);
      },
      const_cast<Body*>(&body));
}
