// The kernels of one instruction set. Each source is compiled once for every set, into a namespace of its own.
#pragma once

#include "tensors.h"

#define VSSM_DECLARE_KERNELS(isa)                                                         \
  namespace isa {                                                                         \
  void scan_forward(const ScanArgs&);                                                     \
  void scan_backward(const ScanGradArgs&);                                                \
  int64_t scan_parts(int64_t batch, int64_t groups, int64_t group_channels);              \
  void conv_forward(const ConvArgs&);                                                     \
  void conv_backward(const ConvGradArgs&);                                                \
  }

#ifdef VSSM_ISA
VSSM_DECLARE_KERNELS(VSSM_ISA)
#endif
