// Causal depthwise convolution along a path, with SiLU, forward and backward.
//
// Channels last: a tap is one multiply-add of a row. A mirrored convolution (the causal one of the reversed sequence,
// in the order of the original) reads the rows ahead instead of those behind; nothing is flipped or copied.
#include "isa.h"
#include "parallel.h"
#include "tiles.h"

namespace VSSM_ISA {
namespace {

// One path of one batch entry for one block of channels.
struct Filter {
  const ConvArgs& c;
  int64_t batch, path, channel;
  int lanes, width;
  const int32_t* read;
  bool mirrored;
  vec* weight;  // in the order of the steps read, first to last
  vec bias;

  Filter(const ConvArgs& c, int64_t batch, int64_t path, int64_t channel, const int32_t* read, vec* memory)
      : c(c), batch(batch), path(path), channel(channel),
        lanes(int(std::min<int64_t>(kLanes, c.channels - channel))), width(int(c.width)), read(read),
        mirrored(c.mirrored[path] != 0), weight(memory) {
    for (int j = 0; j < width; j++) {
      const int64_t tap = mirrored ? width - 1 - j : j;
      weight[j] = load_lanes(c.weight, path * c.weight.path + tap * c.weight.token + channel * c.weight.last,
                             c.weight.last, lanes);
    }
    bias = c.bias.data ? load_lanes(c.bias, path * c.bias.path + channel * c.bias.last, c.bias.last, lanes)
                       : splat(0.0f);
  }

  // The step that an output at step 0 reads first: its taps read width steps from there.
  int64_t reach() const { return mirrored ? 0 : 1 - width; }
  int64_t offset(const Tensor& x) const { return batch * x.batch + path * x.path + channel * x.last; }

  // x at `count + width - 1` steps from `first + reach()`; zero outside the sequence.
  void inputs(int64_t first, int count, vec* x) const {
    std::vector<int32_t>& tokens = indices(count + width - 1);
    for (int i = 0; i < count + width - 1; i++) {
      const int64_t step = first + reach() + i;
      tokens[i] = step >= 0 && step < c.steps ? read[step] : -1;
    }
    gather(c.x, offset(c.x), tokens.data(), tokens.data(), count + width - 1, lanes, x);
  }
  // The outputs of `count` steps before the activation. Writes whole groups of four.
  void convolve(const vec* x, int count, vec* y) const {
    for (int t = 0; t < count; t += 4) {
      vec sum[4] = {bias, bias, bias, bias};
      for (int j = 0; j < width; j++) {
        VSSM_UNROLL
        for (int i = 0; i < 4; i++) sum[i] = sum[i] + weight[j] * x[t + i + j];
      }
      VSSM_UNROLL
      for (int i = 0; i < 4; i++) y[t + i] = sum[i];
    }
  }

  static std::vector<int32_t>& indices(size_t count) {
    static thread_local std::vector<int32_t> memory;
    if (memory.size() < count) memory.resize(count);
    return memory;
  }
};

struct Numbers {  // first, first + 1, ...
  int32_t at[kMaxTile];
  Numbers(int64_t first, int count) {
    for (int i = 0; i < count; i++) at[i] = int32_t(first + i);
  }
};

}  // namespace

void conv_forward(const ConvArgs& c) {
  const Tables tables(c.read, c.read, c.steps);
  const Partition channels(c.batch * c.paths, 1, c.channels);
  parallel(channels.items(), [&](int64_t item) {
    const Slice slice = channels.slice(item);
    const int64_t batch = slice.batch / c.paths, path = slice.batch % c.paths;
    static thread_local Scratch weight_memory, input_memory;
    vec* weight = weight_memory.vectors(slice.count * c.width);
    vec* x = input_memory.vectors(kMaxTile + c.width + 4);
    std::vector<Filter> filters;
    for (int64_t j = 0; j < slice.count; j++)
      filters.emplace_back(c, batch, path, (slice.first + j) * kLanes, tables.read + path * tables.stride,
                           weight + j * c.width);
    for (int64_t first = 0; first < c.steps; first += kMaxTile) {
      const int count = int(std::min<int64_t>(kMaxTile, c.steps - first));
      const Numbers steps(first, count);
      for (const Filter& filter : filters) {
        vec y[kMaxTile];
        prefetch_rows(c.y, filter.offset(c.y), steps.at, count);
        filter.inputs(first, count, x);
        filter.convolve(x, count, y);
        if (c.silu)
          for (int t = 0; t < count; t += 4) silu_wide<4>(y + t);
        scatter(c.y, filter.offset(c.y), steps.at, count, filter.lanes, y, false);
      }
    }
  });
}

void conv_backward(const ConvGradArgs& q) {
  const ConvArgs& c = q.conv;
  const Tables tables(c.read, c.read, c.steps);
  const int64_t blocks = (c.channels + kLanes - 1) / kLanes;
  parallel(c.batch * blocks, [&](int64_t item) {
    const int64_t batch = item / blocks, channel = item % blocks * kLanes;
    static thread_local Scratch weight_memory, sum_memory, input_memory, gradient_memory;
    vec* weight = weight_memory.vectors(c.width);
    vec* d_weight = sum_memory.vectors(c.width);
    vec* x = input_memory.vectors(kMaxTile + c.width + 4);
    const int64_t margin = c.width - 1;
    vec* d_padded = gradient_memory.vectors(c.steps + 2 * margin + 4);
    vec* d_pre = d_padded + margin;  // by the output before the activation, zeros around it
    std::fill_n(d_padded, margin, splat(0.0f));
    std::fill_n(d_pre + c.steps, margin, splat(0.0f));
    for (int64_t path = 0; path < c.paths; path++) {
      const Filter filter(c, batch, path, channel, tables.read + path * tables.stride, weight);
      std::fill_n(d_weight, c.width, splat(0.0f));
      vec d_bias = splat(0.0f), y[kMaxTile], gate[kMaxTile];
      const int64_t dy = batch * q.dy.batch + path * q.dy.path + channel * q.dy.last;
      for (int64_t first = 0; first < c.steps; first += kMaxTile) {
        const int count = int(std::min<int64_t>(kMaxTile, c.steps - first));
        const Numbers steps(first, count);
        vec* d = d_pre + first;
        filter.inputs(first, count, x);
        gather(q.dy, dy, steps.at, steps.at, count, filter.lanes, d);
        if (c.silu) {
          filter.convolve(x, count, y);
          std::copy_n(y, kMaxTile, gate);
          for (int t = 0; t < count; t += 4) sigmoid_wide<4>(gate + t);
          for (int t = 0; t < count; t++) d[t] = d[t] * (gate[t] + y[t] * gate[t] * (1.0f - gate[t]));
        }
        for (int t = 0; t < count; t++) d_bias = d_bias + d[t];
        for (int64_t j = 0; j < c.width; j++) {
          vec sum = d_weight[j];
          for (int t = 0; t < count; t++) sum = sum + d[t] * x[t + j];
          d_weight[j] = sum;
        }
      }
      const int64_t into = batch * q.dx.batch + path * q.dx.path + channel * q.dx.last;
      for (int64_t first = 0; first < c.steps; first += kMaxTile) {
        const int count = int(std::min<int64_t>(kMaxTile, c.steps - first));
        for (int t = 0; t < count; t++) {
          vec sum = splat(0.0f);
          // Output l reads step l + reach + j through weight j.
          for (int64_t j = 0; j < c.width; j++) sum = sum + weight[j] * d_pre[first + t - filter.reach() - j];
          y[t] = sum;
        }
        scatter(q.dx, into, filter.read + first, count, filter.lanes, y, true);
      }
      for (int i = 0; i < filter.lanes; i++) {
        const int64_t row = batch * c.paths + path;
        for (int64_t j = 0; j < c.width; j++) {
          const int64_t tap = filter.mirrored ? c.width - 1 - j : j;
          q.d_weight[(row * c.width + tap) * c.channels + channel + i] = d_weight[j][i];
        }
        q.d_bias[row * c.channels + channel + i] = d_bias[i];
      }
    }
  });
}

}  // namespace VSSM_ISA
