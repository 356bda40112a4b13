// Multi-scale deformable attention on CUDA. A warp owns one head of one query. Its lanes first set up one
// point each (coordinates, corners, weights), then walk the points together, a channel a lane, passing
// indices and weights by shuffles. Sums are in the accumulate type; only value's gradient (and the
// references') uses atomics.
#include <algorithm>

#include "../core/cuda.cuh"
#include "ops.h"

namespace bevkd2::msda {
namespace {

using cuda::kLanes;
constexpr int kWarps = 8;  // of a block
constexpr int kMaxLevels = 64;
constexpr unsigned kAll = cuda::kAllLanes;

struct LevelTable {
  Level level[kMaxLevels];
};

// The attention weight of any sample of one head.
template <typename A>
struct Attention {
  const A* weights;
  A maximum, inverse_sum;
  bool softmax;
  __device__ A operator()(int i) const {
    return softmax ? softmax_weight(weights[i], maximum, inverse_sum) : weights[i];
  }
};

template <typename A>
__device__ Attention<A> make_attention(const A* weights, int samples, bool softmax, int lane) {
  Attention<A> attention{weights, A(0), A(1), softmax};
  if (!softmax || samples == 0) return attention;
  A highest = weights[0];
  for (int i = lane; i < samples; i += kLanes) highest = weights[i] > highest ? weights[i] : highest;
  attention.maximum = cuda::lanes_max(highest);
  A sum = 0;
  for (int i = lane; i < samples; i += kLanes) sum += softmax_weight(weights[i], attention.maximum, A(1));
  attention.inverse_sum = A(1) / cuda::lanes_sum(sum);
  return attention;
}

// One point, as its lane holds it.
template <typename A>
struct Sample {
  Corners<A> corners;
  Affine<A> affine;
  A attention;
  int pixel00, pixel01, pixel10, pixel11;
};

template <typename T, typename A>
__device__ Sample<A> make_sample(const Problem<T>& p, const LevelTable& levels, const A* references,
                                 const A* offset, A attention, int i) {
  const Level level = levels.level[i / p.points];
  Sample<A> s;
  s.affine = sampling_affine(p.rule, references, i / p.points, i % p.points, p.points, A(level.width),
                             A(level.height));
  s.attention = attention;
  s.corners = corner_setup(s.affine.base_x + s.affine.scale_x * offset[0],
                           s.affine.base_y + s.affine.scale_y * offset[1], level.width, level.height);
  const int row0 = level.start + s.corners.y0 * level.width, row1 = level.start + s.corners.y1 * level.width;
  s.pixel00 = row0 + s.corners.x0;
  s.pixel01 = row0 + s.corners.x1;
  s.pixel10 = row1 + s.corners.x0;
  s.pixel11 = row1 + s.corners.x1;
  return s;
}

// What the other lanes need to know of a point.
template <typename A>
struct Shared {
  int64_t at00, at01, at10, at11;  // offsets of the corners' channels in a map
  A w00, w01, w10, w11;            // bilinear weights times attention
};

template <typename A>
__device__ Shared<A> broadcast(const Sample<A>& s, int lane, int64_t stride) {
  const A row0 = s.attention * s.corners.weight_y0, row1 = s.attention * s.corners.weight_y1;
  return {__shfl_sync(kAll, s.pixel00, lane) * stride,
          __shfl_sync(kAll, s.pixel01, lane) * stride,
          __shfl_sync(kAll, s.pixel10, lane) * stride,
          __shfl_sync(kAll, s.pixel11, lane) * stride,
          __shfl_sync(kAll, row0 * s.corners.weight_x0, lane),
          __shfl_sync(kAll, row0 * s.corners.weight_x1, lane),
          __shfl_sync(kAll, row1 * s.corners.weight_x0, lane),
          __shfl_sync(kAll, row1 * s.corners.weight_x1, lane)};
}

// Rows come from the user's tensors, which only the device can read without a synchronisation.
template <typename T>
__device__ void check_rows(const Problem<T>& p, int64_t begin, int64_t end) {
  if (begin < 0 || begin > end || end > p.rows)
    cuda::fail("ms_deform_attn_ragged: row_splits must ascend from 0 to the number of rows");
}

template <typename T>
__device__ int64_t checked_batch(const Problem<T>& p, int64_t row) {
  const int64_t batch = p.batch_of(row);
  if (batch < 0 || batch >= p.batches) cuda::fail("ms_deform_attn_ragged: row_value out of range");
  return batch;
}

// double would spill its registers if as many blocks had to fit on a multiprocessor.
template <typename T>
__global__ void __launch_bounds__(kWarps* kLanes, sizeof(T) == 8 ? 1 : 4)
    forward_kernel(const Problem<T> p, const LevelTable levels, T* out, accumulate_t<T>* weights) {
  using A = accumulate_t<T>;
  const int lane = threadIdx.x % kLanes;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (task >= p.queries * p.heads) return;  // the whole warp
  const int64_t query = task / p.heads;
  const int head = static_cast<int>(task % p.heads);
  const int samples = p.samples();
  const A* offsets = p.offsets + 2 * task * samples;
  const Attention<A> attention = make_attention(p.weights + task * samples, samples, p.softmax, lane);
  if (weights)
    for (int i = lane; i < samples; i += kLanes) weights[task * samples + i] = attention(i);
  const int64_t begin = p.row_begin(query), end = p.row_end(query);
  check_rows(p, begin, end);
  const A mean = end - begin > 1 ? A(1) / A(end - begin) : A(1);
  for (int first = 0; first < p.width; first += kLanes) {
    const int channel = first + lane;
    A sum = 0;
    for (int64_t row = begin; row < end; ++row) {
      const T* map = p.value + checked_batch(p, row) * p.batch_stride() + head * p.width + channel;
      const A* references = p.references_of(row);
      for (int base = 0; base < samples; base += kLanes) {
        const int i = base + lane;
        Sample<A> mine{};
        if (i < samples) mine = make_sample(p, levels, references, offsets + 2 * i, attention(i), i);
        unsigned valid = __ballot_sync(kAll, mine.corners.valid);
        while (valid) {
          const Shared<A> s = broadcast(mine, __ffs(valid) - 1, p.pixel_stride());
          valid &= valid - 1;
          if (channel < p.width)
            sum += s.w00 * static_cast<A>(map[s.at00]) + s.w01 * static_cast<A>(map[s.at01]) +
                   s.w10 * static_cast<A>(map[s.at10]) + s.w11 * static_cast<A>(map[s.at11]);
        }
      }
    }
    if (channel < p.width) out[task * p.width + channel] = static_cast<T>(sum * mean);
  }
}

// The references' gradient of one point; references are shared by heads and points.
template <typename T, typename A>
__device__ void add_reference_grad(const Problem<T>& p, const Level& level, const SampleGrad<A>& grad,
                                   const A* offset, A* references, int i) {
  A* to = references + reference_index(p.rule, i / p.points, i % p.points) * p.rule.dims;
  const A x = grad.x * A(level.width), y = grad.y * A(level.height);
  atomicAdd(to, x);
  atomicAdd(to + 1, y);
  if (p.rule.dims == 4) {
    const A box = A(0.5) / A(p.points);
    atomicAdd(to + 2, x * offset[0] * box);
    atomicAdd(to + 3, y * offset[1] * box);
  }
}

// Walks the valid points of a warp: adds to value's gradient, and leaves each lane the dots of its own point.
template <typename T, typename A>
__device__ void walk_points(const Problem<T>& p, const Sample<A>& mine, const T* map, A* grad_map,
                            const T* grad_out, A mean, bool sampling, int lane, A (&dots)[4]) {
  unsigned valid = __ballot_sync(kAll, mine.corners.valid);
  while (valid) {
    const int owner = __ffs(valid) - 1;
    valid &= valid - 1;
    const Shared<A> s = broadcast(mine, owner, p.pixel_stride());
    A t00 = 0, t01 = 0, t10 = 0, t11 = 0;
    for (int channel = lane; channel < p.width; channel += kLanes) {
      const A grad = static_cast<A>(grad_out[channel]) * mean;
      if (grad_map) {
        atomicAdd(grad_map + s.at00 + channel, s.w00 * grad);
        atomicAdd(grad_map + s.at01 + channel, s.w01 * grad);
        atomicAdd(grad_map + s.at10 + channel, s.w10 * grad);
        atomicAdd(grad_map + s.at11 + channel, s.w11 * grad);
      }
      if (sampling) {
        t00 += grad * static_cast<A>(map[s.at00 + channel]);
        t01 += grad * static_cast<A>(map[s.at01 + channel]);
        t10 += grad * static_cast<A>(map[s.at10 + channel]);
        t11 += grad * static_cast<A>(map[s.at11 + channel]);
      }
    }
    if (!sampling) continue;
    t00 = cuda::lanes_sum(t00);
    t01 = cuda::lanes_sum(t01);
    t10 = cuda::lanes_sum(t10);
    t11 = cuda::lanes_sum(t11);
    if (lane == owner) {
      dots[0] = t00;
      dots[1] = t01;
      dots[2] = t10;
      dots[3] = t11;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kWarps* kLanes, sizeof(T) == 8 ? 1 : 2)
    backward_kernel(const Problem<T> p, const LevelTable levels, const Gradients<T> g) {
  using A = accumulate_t<T>;
  const int lane = threadIdx.x % kLanes;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (task >= p.queries * p.heads) return;  // the whole warp
  const int64_t query = task / p.heads;
  const int head = static_cast<int>(task % p.heads);
  const int samples = p.samples();
  const A* offsets = p.offsets + 2 * task * samples;
  const T* grad_out = g.out + task * p.width;
  const Attention<A> attention = make_attention(p.weights + task * samples, samples, p.softmax, lane);
  const int64_t begin = p.row_begin(query), end = p.row_end(query);
  check_rows(p, begin, end);
  const A mean = end - begin > 1 ? A(1) / A(end - begin) : A(1);
  A weighted = 0;  // sum of weight * gradient, for the softmax
  // A lane keeps the same points for every row, so what it writes of them needs no atomics.
  for (int base = 0; base < samples; base += kLanes) {
    const int i = base + lane;
    A grad_attention = g.weights && i < samples ? g.weights[task * samples + i] : A(0);
    A grad_x = 0, grad_y = 0;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = checked_batch(p, row) * p.batch_stride() + head * p.width;
      Sample<A> mine{};
      if (i < samples) mine = make_sample(p, levels, p.references_of(row), offsets + 2 * i, attention(i), i);
      A dots[4] = {};
      walk_points(p, mine, p.value + at, g.value ? g.value + at : nullptr, grad_out, mean, g.sampling(), lane,
                  dots);
      if (i >= samples || !g.sampling()) continue;  // the loop has no more warp-wide steps in this round
      const SampleGrad<A> grad =
          sample_grad(dots[0], dots[1], dots[2], dots[3], mine.attention, mine.corners);
      grad_attention += grad.attention;
      grad_x += grad.x * mine.affine.scale_x;
      grad_y += grad.y * mine.affine.scale_y;
      if (g.references)
        add_reference_grad(p, levels.level[i / p.points], grad, offsets + 2 * i,
                           g.references + row * p.rule.count * p.rule.dims, i);
    }
    if (i >= samples) continue;
    if (g.offsets) {
      g.offsets[2 * (task * samples + i)] = grad_x;
      g.offsets[2 * (task * samples + i) + 1] = grad_y;
    }
    if (g.logits) g.logits[task * samples + i] = grad_attention;
    weighted += attention(i) * grad_attention;
  }
  if (!g.logits || !p.softmax) return;
  weighted = cuda::lanes_sum(weighted);
  for (int i = lane; i < samples; i += kLanes) {  // its own points again
    A* logit = g.logits + task * samples + i;
    *logit = softmax_grad(attention(i), *logit, weighted);
  }
}

LevelTable make_table(const std::vector<Level>& levels) {
  STD_TORCH_CHECK(levels.size() <= kMaxLevels, "ms_deform_attn: at most ", kMaxLevels, " levels on CUDA");
  LevelTable table{};
  std::copy(levels.begin(), levels.end(), table.level);
  return table;
}

template <typename T>
unsigned blocks_of(const Problem<T>& p) {
  return cuda::blocks_for(p.queries * p.heads, kWarps);
}

struct Cuda {
  static constexpr bool kFillsGradients = false;

  template <typename T>
  static void forward(const Arguments& a, T* out, accumulate_t<T>* weights) {
    const Problem<T> p = make_problem<T>(a);
    STD_TORCH_CHECK(p.queues == 1, "ms_deform_attn_fused: CUDA takes one queue");
    const cuda::OnDevice device(a.value);
    cuda::launch(forward_kernel<T>, blocks_of(p), kWarps * kLanes, 0, device.stream, p, make_table(a.levels),
                 out, weights);
  }

  template <typename T>
  static void backward(const Arguments& a, const Gradients<T>& g) {
    const Problem<T> p = make_problem<T>(a);
    STD_TORCH_CHECK(p.queues == 1, "ms_deform_attn_fused: CUDA takes one queue");
    STD_TORCH_CHECK(!g.value || !g.deterministic,
                    "ms_deform_attn: the gradient of value has no deterministic CUDA implementation");
    const cuda::OnDevice device(a.value);
    cuda::launch(backward_kernel<T>, blocks_of(p), kWarps * kLanes, 0, device.stream, p, make_table(a.levels),
                 g);
  }
};

}  // namespace
}  // namespace bevkd2::msda

BEVKD2_CUDA_LIBRARY(m) { bevkd2::msda::Ops<bevkd2::msda::Cuda>::register_all(m); }
