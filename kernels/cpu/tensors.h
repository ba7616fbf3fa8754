// What the Python binding hands over: plain structs of 64-bit integers, in the order of vision_ssm/ops/cpu.py.
#pragma once

#include <cstdint>

constexpr int64_t kMostSteps = 64;  // of a tile

enum DType : int64_t { kFloat32 = 0, kBFloat16 = 1 };

// A strided tensor (strides in elements); data is null for an absent one. Which dimensions a tensor has depends on
// its role: a dimension that it lacks has stride 0, which is also how values are shared along a dimension.
struct Tensor {
  void* data;
  int64_t dtype;
  int64_t batch, path, group, token, last;
};

// Selective scan over `paths` sequences of `steps` tokens, each read from `in_tokens` and written to `out_tokens`.
struct ScanArgs {
  int64_t batch, paths, groups, group_channels, d_state, dt_rank, steps, in_tokens, out_tokens;
  int64_t tile;        // steps a saved state stands for
  int64_t softplus;    // delta = softplus(dt + dt_bias)
  int64_t merge;       // add the paths' outputs into one
  int64_t exact_read;  // each path reads every token exactly once
  int64_t exact_write;
  const int32_t* read;  // [paths, steps]: token read at a step, -1 = an all-zero token; null = 0, 1, 2, ...
  const int32_t* write; // [paths, steps]: token written at a step, -1 = none
  Tensor u;          // batch, path, token, last = channel
  Tensor dt;         // batch, path, token, last = channel, or rank where dt_rank > 0
  Tensor A;          // path, token = state, last = channel
  Tensor B, C;       // batch, path, group, token, last = state
  Tensor D;          // path, last = channel
  Tensor dt_bias;    // path, last = channel
  Tensor dt_weight;  // path, token = rank, last = channel
  Tensor z;          // batch, path, token, last = channel: y is multiplied by silu(z)
  Tensor y;          // batch, path, token, last = channel
  Tensor ungated;    // float32 y before the gate, kept for the backward pass
  float* last_state; // [batch, paths, channels, d_state]
  float* states;     // saved_states(...) floats, or null
};

// dy is the gradient of the ungated output. Gradients are float32; d_B, d_C and low-rank d_dt come as one partial
// sum for each of the `parts` slices of channels (leading dimension), which the caller adds in order.
struct ScanGradArgs {
  ScanArgs scan;
  Tensor dy;
  float* d_last_state;  // or null
  Tensor du;            // batch, path (0 = sum over paths), token, last
  float* d_dt;          // [batch, paths, in_tokens, channels] or [parts, batch, paths, in_tokens, dt_rank]
  float* d_B;           // [parts, batch, paths, in_tokens, groups, d_state]
  float* d_C;
  float* d_A;           // [batch, paths, channels, d_state]
  float* d_D;           // [batch, paths, channels]
  float* d_dt_bias;     // [batch, paths, channels]
  float* d_dt_weight;   // [batch, paths, channels, dt_rank]
};

// Causal depthwise convolution: y[l] = bias + sum_j weight[j] * x[l - (width - 1) + j], mirrored: x[l + (width - 1) - j].
struct ConvArgs {
  int64_t batch, paths, channels, width, steps, in_tokens;
  int64_t silu;
  const int32_t* read;     // [paths, steps] as above; y is in the order of the steps
  const int64_t* mirrored; // [paths]
  Tensor x;                // batch, path, token, last = channel
  Tensor weight;           // path, token = tap, last = channel
  Tensor bias;             // path, last = channel
  Tensor y;                // batch, path, token, last = channel
};

struct ConvGradArgs {
  ConvArgs conv;
  Tensor dy;
  Tensor dx;       // float32; batch, path (0 = sum over paths), token, last
  float* d_weight; // [batch, paths, width, channels]
  float* d_bias;   // [batch, paths, channels]
};
