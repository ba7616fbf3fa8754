// Staging: tiles of tokens in vectors of channels, gathered from and scattered to any strided tensor.
//
// A kernel works on dense float tiles in the first-level cache. Reading order, pad tokens, channel tails, storage
// type and layout are dealt with here, once for all kernels.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"
#include "tensors.h"

namespace VSSM_ISA {

constexpr int kMaxTile = kMostSteps;

template <class T>
VSSM_INLINE T* at(const Tensor& x, int64_t offset) { return static_cast<T*>(x.data) + offset; }

// Vectors of float that keep their storage from call to call; one per thread and use.
struct Scratch {
  std::vector<float> storage;
  float* floats(size_t count) {
    if (storage.size() < count + 16) storage.resize(count + 16);
    auto address = reinterpret_cast<uintptr_t>(storage.data());
    return storage.data() + ((64 - address % 64) % 64) / 4;
  }
  vec* vectors(size_t count) { return reinterpret_cast<vec*>(floats(count * kLanes + kLanes)); }
};

// Values at x + offset + lane * stride for `lanes` lanes, zero beyond.
template <class T>
VSSM_INLINE vec load_lanes(const T* x, int64_t stride, int lanes) {
  if (stride == 1 && lanes == kLanes) return load(x);
  alignas(64) float values[kLanes] = {};  // inserting into a vector lane by lane is slower
  for (int i = 0; i < lanes; i++) values[i] = scalar(x + i * stride);
  return load(values);
}
VSSM_INLINE vec load_lanes(const Tensor& x, int64_t offset, int64_t stride, int lanes) {
  return x.dtype == kFloat32 ? load_lanes(at<const float>(x, offset), stride, lanes)
                             : load_lanes(at<const bf16>(x, offset), stride, lanes);
}

template <class T>
VSSM_INLINE void gather_typed(const T* x, const Tensor& layout, const int32_t* tokens, const int32_t* ahead, int count,
                              int lanes, vec* out) {
  if (layout.last == 1 && lanes == kLanes) {
    for (int t = 0; t < count; t++) {
      __builtin_prefetch(x + std::max(ahead[t], 0) * layout.token);
      out[t] = tokens[t] < 0 ? splat(0.0f) : load(x + tokens[t] * layout.token);
    }
    return;
  }
  for (int t = 0; t < count; t++) out[t] = splat(0.0f);
  float* flat = reinterpret_cast<float*>(out);
  for (int i = 0; i < lanes; i++)
    for (int t = 0; t < count; t++)
      if (tokens[t] >= 0) flat[t * kLanes + i] = scalar(x + tokens[t] * layout.token + i * layout.last);
}
// out[t] = x[tokens[t]] for one block of channels; `ahead` names the tokens to prefetch.
VSSM_INLINE void gather(const Tensor& x, int64_t offset, const int32_t* tokens, const int32_t* ahead, int count,
                        int lanes, vec* out) {
  if (x.dtype == kFloat32)
    gather_typed(at<const float>(x, offset), x, tokens, ahead, count, lanes, out);
  else
    gather_typed(at<const bf16>(x, offset), x, tokens, ahead, count, lanes, out);
}

template <bool ADD, class T>
VSSM_INLINE void scatter_typed(T* y, const Tensor& layout, const int32_t* tokens, int count, int lanes, const vec* in) {
  if (layout.last == 1 && lanes == kLanes) {
    for (int t = 0; t < count; t++) {
      if (tokens[t] < 0) continue;
      T* p = y + tokens[t] * layout.token;
      store(p, ADD ? in[t] + load(p) : in[t]);
    }
    return;
  }
  const float* flat = reinterpret_cast<const float*>(in);
  for (int i = 0; i < lanes; i++)
    for (int t = 0; t < count; t++) {
      if (tokens[t] < 0) continue;
      T* p = y + tokens[t] * layout.token + i * layout.last;
      scalar_store(p, ADD ? flat[t * kLanes + i] + scalar(p) : flat[t * kLanes + i]);
    }
}
VSSM_INLINE void scatter(const Tensor& y, int64_t offset, const int32_t* tokens, int count, int lanes, const vec* in,
                         bool add) {
  if (y.dtype == kFloat32 && add)
    scatter_typed<true>(at<float>(y, offset), y, tokens, count, lanes, in);
  else if (y.dtype == kFloat32)
    scatter_typed<false>(at<float>(y, offset), y, tokens, count, lanes, in);
  else if (add)
    scatter_typed<true>(at<bf16>(y, offset), y, tokens, count, lanes, in);
  else
    scatter_typed<false>(at<bf16>(y, offset), y, tokens, count, lanes, in);
}

// Asks for the rows that a tile will be scattered to, which takes about as long as computing it.
VSSM_INLINE void prefetch_rows(const Tensor& y, int64_t offset, const int32_t* tokens, int count) {
  const int64_t size = y.dtype == kFloat32 ? 4 : 2;
  for (int t = 0; t < count; t++)
    __builtin_prefetch(static_cast<char*>(y.data) + (offset + std::max(tokens[t], 0) * y.token) * size, 1);
}

template <class T>
VSSM_INLINE void gather_rows_typed(const T* x, const Tensor& layout, const int32_t* tokens, int count, int width,
                                   int padded, float* out) {
  for (int t = 0; t < count; t++) {
    const T* row = x + std::max(tokens[t], 0) * layout.token;
    const bool real = tokens[t] >= 0;
    int i = 0;
    if (real && layout.last == 1)
      for (; i < width; i++) out[t * padded + i] = scalar(row + i);
    else if (real)
      for (; i < width; i++) out[t * padded + i] = scalar(row + i * layout.last);
    for (; i < padded; i++) out[t * padded + i] = 0.0f;
  }
}
// out[t, 0..width) = x[tokens[t]] for values that all channels share, zero-padded to `padded` columns.
VSSM_INLINE void gather_rows(const Tensor& x, int64_t offset, const int32_t* tokens, int count, int width, int padded,
                             float* out) {
  if (x.dtype == kFloat32)
    gather_rows_typed(at<const float>(x, offset), x, tokens, count, width, padded, out);
  else
    gather_rows_typed(at<const bf16>(x, offset), x, tokens, count, width, padded, out);
}

// Where the rows of a tile lie: `here`, and `next` those to prefetch, in floats from a common base.
template <class T>
struct TileRows {
  T* base;
  const int64_t *here, *next;
  inline __attribute__((always_inline)) T* at(int t) const { return base + here[t]; }
  inline __attribute__((always_inline)) const T* ahead(int t) const { return base + next[t]; }
};

// Offsets of a tile's tokens in one tensor, the same for all blocks of channels.
struct RowOffsets {
  int64_t here[kMaxTile], next[kMaxTile];
  const int32_t *tokens, *ahead;
  int count;
  bool dense;  // no token is missing
  void set(const Tensor& x, const int32_t* first, int64_t to_next, int length) {
    tokens = first, ahead = first + to_next, count = length, dense = true;
    for (int t = 0; t < count; t++) {
      here[t] = tokens[t] * x.token;
      next[t] = std::max(ahead[t], 0) * x.token;
      dense &= tokens[t] >= 0;
    }
  }
  // Whether vectors of x can be used where they lie.
  bool direct(const Tensor& x, int lanes) const {
    return dense && x.dtype == kFloat32 && x.last == 1 && lanes == kLanes;
  }
};

constexpr struct StagedOffsets {
  int64_t at[kMaxTile];
  constexpr StagedOffsets() : at() {
    for (int t = 0; t < kMaxTile; t++) at[t] = t * kLanes;
  }
} kStaged;
VSSM_INLINE TileRows<float> staged_rows(vec* tile) { return {reinterpret_cast<float*>(tile), kStaged.at, kStaged.at}; }

// The rows of a tile of x: in place if possible, else gathered into `staged`.
VSSM_INLINE TileRows<const float> read_rows(const Tensor& x, int64_t offset, const RowOffsets& rows, int lanes,
                                            vec* staged) {
  if (rows.direct(x, lanes)) return {at<const float>(x, offset), rows.here, rows.next};
  gather(x, offset, rows.tokens, rows.ahead, rows.count, lanes, staged);
  return {reinterpret_cast<const float*>(staged), kStaged.at, kStaged.at};
}

// Blocks [first, first + count) of kLanes channels, of one batch entry and one group: what one work item does.
struct Slice {
  int64_t batch, group, part, first, count;
};

// Channels are cut into parts by their number alone: which sums are formed must not depend on the thread count.
struct Partition {
  int64_t batch, groups, blocks, parts;
  Partition(int64_t batch, int64_t groups, int64_t channels)
      : batch(batch), groups(groups), blocks((channels + kLanes - 1) / kLanes), parts(1) {
    while (parts < 8 && batch * groups * parts < 16 && blocks / (parts * 2) >= (kLanes == 16 ? 2 : 4)) parts *= 2;
  }
  int64_t items() const { return batch * groups * parts; }
  Slice slice(int64_t item) const {
    int64_t part = item % parts, each = blocks / parts, more = blocks % parts;
    return {item / (parts * groups), item / parts % groups, part, part * each + std::min(part, more),
            each + (part < more)};
  }
};

// Token tables with the identity made explicit, so that the kernels know one form only.
struct Tables {
  const int32_t* read;
  const int32_t* write;
  int64_t stride;
  std::vector<int32_t> identity;
  Tables(const int32_t* read, const int32_t* write, int64_t steps) : read(read), write(write), stride(steps) {
    if (read && write) return;
    identity.resize(steps);
    for (int64_t i = 0; i < steps; i++) identity[i] = int32_t(i);
    this->read = this->write = identity.data();
    stride = 0;
  }
};

}  // namespace VSSM_ISA
