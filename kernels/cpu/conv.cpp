// Causal depthwise convolution along a path, with SiLU, forward and backward.
//
// Channels last: a tap is one multiply-add of a row, and a mirrored convolution (the causal one of the reversed
// sequence, in the order of the original) reads the rows ahead instead of those behind; nothing is flipped or copied.
#include "isa.h"
#include "parallel.h"
#include "tiles.h"

namespace VSSM_ISA {
namespace {

struct Taps {
  const ConvArgs& c;
  int64_t batch, path, channel;
  int lanes;
  const int32_t* read;
  vec* weight;
  vec bias;
  bool mirrored;

  Taps(const ConvArgs& c, int64_t batch, int64_t path, int64_t channel, const int32_t* read, vec* memory)
      : c(c), batch(batch), path(path), channel(channel),
        lanes(int(std::min<int64_t>(kLanes, c.channels - channel))), read(read), weight(memory),
        mirrored(c.mirrored[path] != 0) {
    for (int64_t j = 0; j < c.width; j++)
      weight[j] = load_lanes(c.weight, path * c.weight.path + j * c.weight.token + channel * c.weight.last,
                             c.weight.last, lanes);
    bias = c.bias.data ? load_lanes(c.bias, path * c.bias.path + channel * c.bias.last, c.bias.last, lanes)
                       : splat(0.0f);
  }
  // The step that tap j of output step l reads.
  int64_t source(int64_t l, int64_t j) const { return mirrored ? l + (c.width - 1 - j) : l - (c.width - 1 - j); }

  vec input(int64_t step) const {
    if (step < 0 || step >= c.steps || read[step] < 0) return splat(0.0f);
    const Tensor& x = c.x;
    return load_lanes(x, batch * x.batch + path * x.path + read[step] * x.token + channel * x.last, x.last, lanes);
  }
  vec before_activation(int64_t l) const {
    vec sum = bias;
    for (int64_t j = 0; j < c.width; j++) sum = sum + weight[j] * input(source(l, j));
    return sum;
  }
};

}  // namespace

void conv_forward(const ConvArgs& c) {
  const Tables tables(c.read, c.read, c.steps);
  const int64_t blocks = (c.channels + kLanes - 1) / kLanes, spans = (c.steps + kMaxTile - 1) / kMaxTile;
  parallel(c.batch * c.paths * spans, [&](int64_t item) {
    const int64_t span = item % spans, path = item / spans % c.paths, batch = item / spans / c.paths;
    const int64_t first = span * kMaxTile, last = std::min(c.steps, first + kMaxTile);
    static thread_local Scratch memory;
    vec* weight = memory.vectors(c.width);
    for (int64_t block = 0; block < blocks; block++) {
      const Taps taps(c, batch, path, block * kLanes, tables.read + path * tables.stride, weight);
      const int64_t out = batch * c.y.batch + path * c.y.path + block * kLanes * c.y.last;
      vec y[kMaxTile];
      int32_t steps[kMaxTile];
      for (int64_t l = first; l < last; l++) {
        y[l - first] = taps.before_activation(l);
        steps[l - first] = int32_t(l);
      }
      if (c.silu)
        for (int64_t i = 0; i < last - first; i++) y[i] = silu(y[i]);
      scatter(c.y, out, steps, int(last - first), taps.lanes, y, false);
    }
  });
}

void conv_backward(const ConvGradArgs& q) {
  const ConvArgs& c = q.conv;
  const Tables tables(c.read, c.read, c.steps);
  const int64_t blocks = (c.channels + kLanes - 1) / kLanes;
  parallel(c.batch * blocks, [&](int64_t item) {
    const int64_t batch = item / blocks, channel = item % blocks * kLanes;
    static thread_local Scratch tap_memory, sum_memory, grad_memory;
    vec* weight = tap_memory.vectors(c.width);
    vec* d_weight = sum_memory.vectors(c.width);
    vec* d_pre = grad_memory.vectors(c.steps);
    for (int64_t path = 0; path < c.paths; path++) {
      const int32_t* read = tables.read + path * tables.stride;
      const Taps taps(c, batch, path, channel, read, weight);
      std::fill_n(d_weight, c.width, splat(0.0f));
      vec d_bias = splat(0.0f);
      const Tensor& dy = q.dy;
      for (int64_t l = 0; l < c.steps; l++) {
        vec d = load_lanes(dy, batch * dy.batch + path * dy.path + l * dy.token + channel * dy.last, dy.last,
                           taps.lanes);
        if (c.silu) {
          const vec x = taps.before_activation(l), gate = sigmoid(x);
          d = d * (gate + x * gate * (1.0f - gate));
        }
        d_pre[l] = d;
        d_bias = d_bias + d;
        for (int64_t j = 0; j < c.width; j++) d_weight[j] = d_weight[j] + d * taps.input(taps.source(l, j));
      }
      const int64_t into = batch * q.dx.batch + path * q.dx.path + channel * q.dx.last;
      for (int64_t step = 0; step < c.steps; step++) {
        if (read[step] < 0) continue;
        vec sum = splat(0.0f);
        for (int64_t j = 0; j < c.width; j++) {
          // Step `step` is read by output l through tap j when source(l, j) == step.
          const int64_t l = taps.mirrored ? step - (c.width - 1 - j) : step + (c.width - 1 - j);
          if (l >= 0 && l < c.steps) sum = sum + weight[j] * d_pre[l];
        }
        scatter(q.dx, into, read + step, 1, taps.lanes, &sum, true);
      }
      for (int i = 0; i < taps.lanes; i++) {
        const int64_t row = batch * c.paths + path;
        for (int64_t j = 0; j < c.width; j++)
          q.d_weight[(row * c.width + j) * c.channels + channel + i] = d_weight[j][i];
        q.d_bias[row * c.channels + channel + i] = d_bias[i];
      }
    }
  });
}

}  // namespace VSSM_ISA
