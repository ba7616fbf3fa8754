// Fused selective scan, forward and backward.
//
//   delta = softplus(dt + dt_bias)            dt = dt_weight @ (low-rank dt) where a rank is given
//   h[t]  = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t]
//   y[t]  = C[t] . h[t] + D u[t]
//
// One work item is a slice of channels of one batch entry. It walks the paths one after another and adds their
// outputs in place, so that neither x nor y is ever copied for a path. Within a tile: gather u, compute all deltas,
// then run the recurrence with the states in registers (lane = channel, B and C are scalar operands).
// The state is float32 whatever the storage type.
#include "isa.h"
#include "parallel.h"
#include "tiles.h"

namespace VSSM_ISA {
namespace {

constexpr float kLog2e = 1.44269504088896340736f, kLn2 = 0.693147180559945309417f;

// States are processed in blocks of 16, 8 or 4 (or alone); the padding has A = B = C = 0 and stays 0.
int padded_states(int64_t d_state) { return d_state == 1 ? 1 : int((d_state + 3) / 4 * 4); }

// What one path needs of its parameters, packed by channel block.
struct PathParameters {
  vec* A2;      // [blocks, states], A * log2(e)
  vec* weight;  // [blocks, rank]
  vec* D;       // [blocks]
  vec* bias;    // [blocks]
};

struct Geometry {
  const ScanArgs& s;
  Slice slice;
  int states;

  Geometry(const ScanArgs& s, const Slice& slice)
      : s(s), slice(slice), states(padded_states(s.d_state)) {}

  int64_t channel(int64_t block) const { return slice.group * s.group_channels + (slice.first + block) * kLanes; }
  int lanes(int64_t block) const {
    return int(std::min<int64_t>(kLanes, s.group_channels - (slice.first + block) * kLanes));
  }
  int64_t offset(const Tensor& x, int64_t path) const {
    return slice.batch * x.batch + path * x.path + slice.group * x.group;
  }
  int64_t offset(const Tensor& x, int64_t path, int64_t block) const {
    return offset(x, path) + channel(block) * x.last;
  }
  float* saved(int64_t path, int64_t tile, int64_t tiles, int64_t block) const {
    int64_t channels = (s.group_channels + 15) / 16 * 16;
    int64_t row = ((slice.batch * s.paths + path) * s.groups + slice.group) * tiles + tile;
    return s.states + (row * channels + (slice.first + block) * kLanes) * states;
  }
  size_t parameter_vectors() const { return slice.count * (states + s.dt_rank + 2); }

  PathParameters pack(int64_t path, vec* memory) const {
    PathParameters p{memory, memory + slice.count * states, nullptr, nullptr};
    p.D = p.weight + slice.count * s.dt_rank;
    p.bias = p.D + slice.count;
    for (int64_t j = 0; j < slice.count; j++) {
      const int width = lanes(j);
      auto row = [&](const Tensor& x, int64_t i) {
        if (!x.data) return splat(0.0f);
        return load_lanes(x, path * x.path + i * x.token + channel(j) * x.last, x.last, width);
      };
      for (int n = 0; n < states; n++) p.A2[j * states + n] = n < s.d_state ? row(s.A, n) * kLog2e : splat(0.0f);
      for (int64_t r = 0; r < s.dt_rank; r++) p.weight[j * s.dt_rank + r] = row(s.dt_weight, r);
      p.D[j] = row(s.D, 0);
      p.bias[j] = row(s.dt_bias, 0);
    }
    return p;
  }
};

// Values that all channels of a tile share.
struct Rows {
  float *B, *C, *rank;
  void load(const Geometry& g, int64_t path, const int32_t* tokens, int count) {
    gather_rows(g.s.B, g.offset(g.s.B, path), tokens, count, int(g.s.d_state), g.states, B);
    gather_rows(g.s.C, g.offset(g.s.C, path), tokens, count, int(g.s.d_state), g.states, C);
    if (g.s.dt_rank)
      gather_rows(g.s.dt, g.offset(g.s.dt, path), tokens, count, int(g.s.dt_rank), int(g.s.dt_rank), rank);
  }
  static size_t floats(const Geometry& g) { return kMaxTile * (2 * g.states + g.s.dt_rank + 4); }
  Rows(const Geometry& g, float* memory)
      : B(memory), C(memory + kMaxTile * g.states), rank(memory + 2 * kMaxTile * g.states) {}
};

// delta of a tile, and its derivative by dt if asked. Every value is computed before the scan starts: inside the
// token loop the softplus would cost its whole latency at each token.
template <bool SLOPE>
void step_sizes(const Geometry& g, const PathParameters& p, const Rows& rows, int64_t path, int64_t block,
                const RowOffsets& tokens, vec* staged, vec* delta, vec* slope) {
  const ScanArgs& s = g.s;
  const vec bias = p.bias[block];
  const int64_t rank = s.dt_rank;
  const vec* weight = p.weight + block * rank;
  const TileRows<const float> dt = rank ? TileRows<const float>{} : read_rows(
      s.dt, g.offset(s.dt, path, block), tokens, g.lanes(block), staged);
  for (int t = 0; t < tokens.count; t += 4) {
    vec x[4];
    VSSM_UNROLL
    for (int i = 0; i < 4; i++) x[i] = bias;
    if (rank) {
      const float* row = rows.rank + t * rank;
      for (int64_t r = 0; r < rank; r++) {
        const vec w = weight[r];
        VSSM_UNROLL
        for (int i = 0; i < 4; i++) x[i] = x[i] + w * row[i * rank + r];
      }
    } else {
      VSSM_UNROLL
      for (int i = 0; i < 4; i++) {
        const int here = std::min(t + i, tokens.count - 1);
        __builtin_prefetch(dt.ahead(here));
        x[i] = x[i] + load(dt.at(here));
      }
    }
    if (s.softplus) softplus_wide<4, SLOPE>(x, slope + t);
    VSSM_UNROLL
    for (int i = 0; i < 4; i++) delta[t + i] = x[i];
  }
}

// The recurrence of N states over a tile. y gets (`add`: is added) D u and these states' part of the output.
template <int N>
void scan_states(const vec* A2, const float* B, const float* C, int stride, vec skip, const TileRows<const float>& u,
                 const vec* delta, int count, vec* state, const TileRows<float>& y, bool add) {
  vec h[N];
  VSSM_UNROLL
  for (int n = 0; n < N; n++) h[n] = state[n];
  const auto put = [&](int t, vec value) {
    __builtin_prefetch(y.ahead(t), 1);
    store(y.at(t), add ? value + load(y.at(t)) : value);
  };
  if constexpr (N == 1) {
    const vec A2_0 = A2[0];
    for (int t = 0; t < count; t += 4) {
      vec a[4];
      VSSM_UNROLL
      for (int i = 0; i < 4; i++) a[i] = delta[t + i] * A2_0;
      exp2_wide<4>(a);
      const auto step = [&](int i) __attribute__((always_inline)) {
        __builtin_prefetch(u.ahead(t + i));
        const vec x = load(u.at(t + i));
        h[0] = a[i] * h[0] + (delta[t + i] * x) * B[(t + i) * stride];
        put(t + i, skip * x + h[0] * C[(t + i) * stride]);
      };
      if (t + 4 <= count) {
        VSSM_UNROLL
        for (int i = 0; i < 4; i++) step(i);
      } else {
        for (int i = 0; t + i < count; i++) step(i);
      }
    }
  } else {
    for (int t = 0; t < count; t++) {
      __builtin_prefetch(u.ahead(t));
      const vec x = load(u.at(t)), d = delta[t], du = d * x;
      const float *b = B + t * stride, *c = C + t * stride;
      vec even = skip * x, odd = splat(0.0f);
      VSSM_UNROLL
      for (int n0 = 0; n0 < N; n0 += 4) {
        vec a[4];
        VSSM_UNROLL
        for (int i = 0; i < 4; i++) a[i] = d * A2[n0 + i];
        exp2_wide<4>(a);
        VSSM_UNROLL
        for (int i = 0; i < 4; i++) {
          h[n0 + i] = a[i] * h[n0 + i] + du * b[n0 + i];
          if (i & 1)
            odd = odd + h[n0 + i] * c[n0 + i];
          else
            even = even + h[n0 + i] * c[n0 + i];
        }
      }
      put(t, even + odd);
    }
  }
  VSSM_UNROLL
  for (int n = 0; n < N; n++) state[n] = h[n];
}

void scan_tile(const Geometry& g, const PathParameters& p, const Rows& rows, int64_t block,
               const TileRows<const float>& u, const vec* delta, int count, vec* state, const TileRows<float>& y,
               bool add) {
  const vec* A2 = p.A2 + block * g.states;
  vec skip = p.D[block];
  for (int n = 0; n < g.states;) {
    const int left = g.states - n, width = left >= 16 ? 16 : left >= 8 ? 8 : left >= 4 ? 4 : 1;
    auto* run = width == 16 ? scan_states<16> : width == 8 ? scan_states<8> : width == 4 ? scan_states<4> : scan_states<1>;
    run(A2 + n, rows.B + n, rows.C + n, g.states, skip, u, delta, count, state + n, y, add);
    n += width;
    skip = splat(0.0f);
    add = true;
  }
}

// y = plane * silu(z), in the storage type of y.
void finish(const Geometry& g, int64_t path, const Tensor& plane, int64_t plane_offset) {
  const ScanArgs& s = g.s;
  vec values[kMaxTile], gate[kMaxTile];
  int32_t tokens[2 * kMaxTile];  // of this tile and, to be prefetched, the next
  const int32_t* ahead = tokens + kMaxTile;
  for (int64_t first = 0; first < s.out_tokens; first += kMaxTile) {
    const int count = int(std::min<int64_t>(kMaxTile, s.out_tokens - first));
    for (int t = 0; t < 2 * kMaxTile; t++) tokens[t] = int32_t(std::min(first + t, s.out_tokens - 1));
    for (int64_t j = 0; j < g.slice.count; j++) {
      const int lanes = g.lanes(j);
      gather(plane, plane_offset + j * kLanes, tokens, ahead, count, lanes, values);
      if (s.z.data) {
        gather(s.z, g.offset(s.z, path, j), tokens, ahead, count, lanes, gate);
        for (int t = 0; t < count; t += 4) silu_wide<4>(gate + t);
        for (int t = 0; t < count; t++) values[t] = values[t] * gate[t];
      }
      scatter(s.y, g.offset(s.y, path, j), tokens, count, lanes, values, false);
    }
  }
}

void forward_slice(const ScanArgs& s, const Slice& slice) {
  const Geometry g(s, slice);
  const int64_t tiles = (s.steps + s.tile - 1) / s.tile;
  static thread_local Scratch parameter_memory, row_memory, state_memory, plane_memory;
  vec* parameters = parameter_memory.vectors(g.parameter_vectors());
  Rows rows(g, row_memory.floats(Rows::floats(g)));
  vec* h = state_memory.vectors(slice.count * g.states);

  // Sums over paths are formed in float32: in y itself where it can hold them, else in a plane beside it.
  Tensor target = s.y;
  const bool direct = s.y.dtype == kFloat32 && !s.z.data;
  if (!direct && s.ungated.data) target = s.ungated;
  const bool own_plane = !direct && !s.ungated.data;
  if (own_plane)
    target = {plane_memory.floats(s.out_tokens * slice.count * kLanes), kFloat32, 0, 0, 0, slice.count * kLanes, 1};
  auto target_offset = [&](int64_t path, int64_t block) {
    return own_plane ? block * kLanes : g.offset(target, path, block);
  };

  vec u[kMaxTile], delta[kMaxTile], y[kMaxTile];
  RowOffsets u_tokens, dt_tokens, y_tokens;
  for (int64_t k = 0; k < s.paths; k++) {
    const Tables tables(s.read, s.write, s.steps);
    const int32_t *read = tables.read + k * tables.stride, *write = tables.write + k * tables.stride;
    const PathParameters p = g.pack(k, parameters);
    std::fill_n(h, slice.count * g.states, splat(0.0f));
    const bool first = k == 0 || !s.merge;
    if (own_plane && first && !s.exact_write)
      std::fill_n(static_cast<float*>(target.data), s.out_tokens * slice.count * kLanes, 0.0f);
    const bool add = !first || !s.exact_write;

    for (int64_t tile = 0; tile < tiles; tile++) {
      const int64_t start = tile * s.tile;
      const int count = int(std::min(s.tile, s.steps - start));
      const int64_t next = start + s.tile + count <= s.steps ? s.tile : 0;
      rows.load(g, k, read + start, count);
      u_tokens.set(s.u, read + start, next, count);
      if (!s.dt_rank) dt_tokens.set(s.dt, read + start, next, count);
      y_tokens.set(target, write + start, next, count);
      dt_tokens.count = count;
      for (int64_t j = 0; j < slice.count; j++) {
        vec* state = h + j * g.states;
        const int lanes = g.lanes(j);
        if (s.states) std::memcpy(g.saved(k, tile, tiles, j), state, g.states * sizeof(vec));
        step_sizes<false>(g, p, rows, k, j, dt_tokens, y, delta, delta);
        const auto input = read_rows(s.u, g.offset(s.u, k, j), u_tokens, lanes, u);
        const int width = own_plane ? kLanes : lanes;
        if (y_tokens.direct(target, width)) {
          const TileRows<float> into{at<float>(target, target_offset(k, j)), y_tokens.here, y_tokens.next};
          scan_tile(g, p, rows, j, input, delta, count, state, into, add);
        } else {
          scan_tile(g, p, rows, j, input, delta, count, state, staged_rows(y), false);
          scatter(target, target_offset(k, j), write + start, count, width, y, add);
        }
      }
    }
    if (s.last_state)
      for (int64_t j = 0; j < slice.count; j++)
        for (int i = 0; i < g.lanes(j); i++)
          for (int n = 0; n < s.d_state; n++) {
            int64_t row = (slice.batch * s.paths + k) * s.groups * s.group_channels + g.channel(j) + i;
            s.last_state[row * s.d_state + n] = h[j * g.states + n][i];
          }
    if (!direct && (!s.merge || k == s.paths - 1)) {
      const int64_t path = s.merge ? 0 : k;
      finish(g, path, target, own_plane ? 0 : g.offset(target, path, 0));
    }
  }
}

// The adjoint of a tile for S states. `decay` and `carried` are its scratch: exp(delta A) and exp(delta A) h[t-1].
//   g[t] = C[t] dy[t] + decay[t+1] g[t+1]
template <int S>
void adjoint_states(const vec* A2, const float* B, const float* C, int stride, const vec* u, const vec* delta,
                    const vec* dy, int count, const vec* state, vec* adjoint, vec* dA, vec* by_B, vec* by_A, vec* sum_B,
                    vec* sum_C, bool first_block, vec* decay, vec* carried) {
  vec h[S], g[S], slope[S];
  VSSM_UNROLL
  for (int n = 0; n < S; n++) h[n] = state[n], g[n] = adjoint[n], slope[n] = dA[n];
  if constexpr (S == 1) {
    for (int t = 0; t < count; t += 4) {
      VSSM_UNROLL
      for (int i = 0; i < 4; i++) decay[t + i] = delta[t + i] * A2[0];
      exp2_wide<4>(decay + t);
    }
    for (int t = 0; t < count; t++) {
      carried[t] = decay[t] * h[0];
      h[0] = carried[t] + (delta[t] * u[t]) * B[t * stride];
    }
  } else {
    for (int t = 0; t < count; t++) {
      const vec d = delta[t], du = d * u[t];
      vec a[S];
      VSSM_UNROLL
      for (int n = 0; n < S; n++) a[n] = d * A2[n];
      exp2_wide<S>(a);
      VSSM_UNROLL
      for (int n = 0; n < S; n++) {
        const vec from_before = a[n] * h[n];
        decay[t * S + n] = a[n];
        carried[t * S + n] = from_before;
        h[n] = from_before + du * B[t * stride + n];
      }
    }
  }
  for (int t = count - 1; t >= 0; t--) {
    const vec d = delta[t], du = d * u[t], out = dy[t];
    const float *b = B + t * stride, *c = C + t * stride;
    vec through_B = by_B[t], through_A = by_A[t];
    VSSM_UNROLL
    for (int n = 0; n < S; n++) {
      const vec before = carried[t * S + n], here = before + du * b[n];
      const vec total = g[n] + out * c[n], product = total * before;
      vec *into_B = sum_B + t * stride + n, *into_C = sum_C + t * stride + n;
      *into_C = first_block ? out * here : *into_C + out * here;
      *into_B = first_block ? total * du : *into_B + total * du;
      through_B = through_B + total * b[n];
      through_A = through_A + product * A2[n];
      slope[n] = slope[n] + product * d;
      g[n] = total * decay[t * S + n];
    }
    by_B[t] = through_B;
    by_A[t] = through_A;
  }
  VSSM_UNROLL
  for (int n = 0; n < S; n++) adjoint[n] = g[n], dA[n] = slope[n];
}

void backward_slice(const ScanGradArgs& q, const Slice& slice) {
  const ScanArgs& s = q.scan;
  const Geometry g(s, slice);
  const int states = g.states;
  const int64_t tiles = (s.steps + s.tile - 1) / s.tile, rank = s.dt_rank, channels = s.groups * s.group_channels;
  static thread_local Scratch parameter_memory, row_memory, carry_memory, tile_memory, sum_memory;
  vec* parameters = parameter_memory.vectors(g.parameter_vectors());
  Rows rows(g, row_memory.floats(Rows::floats(g)));
  vec* carry = carry_memory.vectors(slice.count * (2 * states + rank + 2));
  vec *adjoint = carry, *dA = adjoint + slice.count * states, *dW = dA + slice.count * states,
      *dD = dW + slice.count * rank, *dbias = dD + slice.count;
  vec* scratch = tile_memory.vectors(kMaxTile * (2 * 4 + 2 * states + rank));
  vec *decay = scratch, *carried = decay + kMaxTile * 4, *sum_B = carried + kMaxTile * 4,
      *sum_C = sum_B + kMaxTile * states, *sum_rank = sum_C + kMaxTile * states;
  float* sums = sum_memory.floats(kMaxTile * std::max<int64_t>(states, rank));
  vec u[kMaxTile], delta[kMaxTile], slope[kMaxTile], dy[kMaxTile], by_B[kMaxTile], by_A[kMaxTile];
  RowOffsets dt_tokens;

  // Adds the lane sums of x [count, width] to, or stores them in, rows of `out` at `tokens`.
  auto reduce_rows = [&](const vec* x, const int32_t* tokens, int count, int width, int used, float* out,
                         int64_t row_stride) {
    sum_lanes_many(x, int64_t(count) * width, sums);
    for (int t = 0; t < count; t++) {
      if (tokens[t] < 0) continue;
      float* row = out + tokens[t] * row_stride;
      for (int i = 0; i < used; i++) row[i] = s.exact_read ? sums[t * width + i] : row[i] + sums[t * width + i];
    }
  };

  for (int64_t k = 0; k < s.paths; k++) {
    const Tables tables(s.read, s.write, s.steps);
    const int32_t *read = tables.read + k * tables.stride, *write = tables.write + k * tables.stride;
    const PathParameters p = g.pack(k, parameters);
    const int64_t path_row = slice.batch * s.paths + k;
    std::fill_n(carry, slice.count * (2 * states + rank + 2), splat(0.0f));
    if (q.d_last_state)
      for (int64_t j = 0; j < slice.count; j++)
        for (int i = 0; i < g.lanes(j); i++)
          for (int n = 0; n < s.d_state; n++)
            adjoint[j * states + n][i] = q.d_last_state[(path_row * channels + g.channel(j) + i) * s.d_state + n];

    for (int64_t tile = tiles - 1; tile >= 0; tile--) {
      const int64_t start = tile * s.tile;
      const int count = int(std::min(s.tile, s.steps - start));
      const int32_t *tokens = read + start, *targets = write + start;
      const int64_t back = tile > 0 ? s.tile : 0;
      rows.load(g, k, tokens, count);
      dt_tokens.count = count;
      if (!rank) dt_tokens.set(s.dt, tokens, -back, count);
      for (int64_t j = 0; j < slice.count; j++) {
        const int lanes = g.lanes(j);
        gather(s.u, g.offset(s.u, k, j), tokens, tokens - back, count, lanes, u);
        gather(q.dy, g.offset(q.dy, k, j), targets, targets - back, count, lanes, dy);
        step_sizes<true>(g, p, rows, k, j, dt_tokens, by_B, delta, slope);
        std::fill_n(by_B, count, splat(0.0f));
        std::fill_n(by_A, count, splat(0.0f));
        const vec* saved = reinterpret_cast<const vec*>(g.saved(k, tile, tiles, j));
        for (int n = 0; n < states; n += states == 1 ? 1 : 4) {
          auto* run = states == 1 ? adjoint_states<1> : adjoint_states<4>;
          run(p.A2 + j * states + n, rows.B + n, rows.C + n, states, u, delta, dy, count, saved + n,
              adjoint + j * states + n, dA + j * states + n, by_B, by_A, sum_B + n, sum_C + n, j == 0, decay, carried);
        }
        const vec skip = p.D[j];
        vec skip_sum = dD[j], bias_sum = dbias[j];
        for (int t = 0; t < count; t++) {
          vec d_delta = by_B[t] * u[t] + by_A[t] * kLn2;
          if (s.softplus) d_delta = d_delta * slope[t];
          skip_sum = skip_sum + dy[t] * u[t];
          bias_sum = bias_sum + d_delta;
          by_B[t] = by_B[t] * delta[t] + skip * dy[t];  // du
          by_A[t] = d_delta;
        }
        dD[j] = skip_sum;
        dbias[j] = bias_sum;
        scatter(q.du, g.offset(q.du, k, j), tokens, count, lanes, by_B, (k > 0 && q.du.path == 0) || !s.exact_read);
        if (!rank) {
          const Tensor d_dt{q.d_dt, kFloat32, 0, 0, 0, channels, 1};
          scatter(d_dt, path_row * s.in_tokens * channels + g.channel(j), tokens, count, lanes, by_A, !s.exact_read);
        }
        for (int64_t r = 0; r < rank; r++) {
          const vec weight = p.weight[j * rank + r];
          vec total = dW[j * rank + r];
          for (int t = 0; t < count; t++) {
            total = total + by_A[t] * rows.rank[t * rank + r];
            vec* into = sum_rank + t * rank + r;
            *into = j == 0 ? by_A[t] * weight : *into + by_A[t] * weight;
          }
          dW[j * rank + r] = total;
        }
      }
      const int64_t token_row = (slice.part * s.batch * s.paths + path_row) * s.in_tokens;
      const int64_t row = s.groups * s.d_state, column = slice.group * s.d_state;
      reduce_rows(sum_B, tokens, count, states, int(s.d_state), q.d_B + token_row * row + column, row);
      reduce_rows(sum_C, tokens, count, states, int(s.d_state), q.d_C + token_row * row + column, row);
      if (rank) {
        const int64_t part = slice.part * s.groups + slice.group;
        const int64_t rank_row = (part * s.batch * s.paths + path_row) * s.in_tokens;
        reduce_rows(sum_rank, tokens, count, int(rank), int(rank), q.d_dt + rank_row * rank, rank);
      }
    }
    for (int64_t j = 0; j < slice.count; j++)
      for (int i = 0; i < g.lanes(j); i++) {
        const int64_t channel = path_row * channels + g.channel(j) + i;
        for (int n = 0; n < s.d_state; n++) q.d_A[channel * s.d_state + n] = dA[j * states + n][i];
        for (int64_t r = 0; r < rank; r++) q.d_dt_weight[channel * rank + r] = dW[j * rank + r][i];
        q.d_D[channel] = dD[j][i];
        q.d_dt_bias[channel] = dbias[j][i];
      }
  }
}

}  // namespace

void scan_forward(const ScanArgs& s) {
  const Partition partition(s.batch, s.groups, s.group_channels);
  parallel(partition.items(), [&](int64_t item) { forward_slice(s, partition.slice(item)); });
}

void scan_backward(const ScanGradArgs& q) {
  const Partition partition(q.scan.batch, q.scan.groups, q.scan.group_channels);
  parallel(partition.items(), [&](int64_t item) { backward_slice(q, partition.slice(item)); });
}

int64_t scan_parts(int64_t batch, int64_t groups, int64_t group_channels) {
  return Partition(batch, groups, group_channels).parts;
}

}  // namespace VSSM_ISA
