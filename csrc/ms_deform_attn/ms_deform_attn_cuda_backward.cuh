// The kernels of the backward pass of multi-scale deformable attention. Their phases
// are those of ms_deform_attn_cuda_device.cuh.
#pragma once

#include "ms_deform_attn_cuda_device.cuh"
#include "ms_deform_attn_cuda_fixed_point.cuh"

namespace bevkd2::msda {

// Where value's gradient goes. Each of the three sinks makes a kernel of its own: one kernel for all would
// spill registers.
template <typename A>
struct NoSink {
  static constexpr bool kWanted = false;
  static constexpr int kBlocks = 5;  // that must fit on a multiprocessor
  struct Adder {
    A* to = nullptr;
    __device__ explicit Adder(const NoSink&) {}
    template <int kSize>
    __device__ void add(A*, const A (&)[kSize]) const {}
  };
};

template <typename A>
struct FloatSink {
  static constexpr bool kWanted = true;
  static constexpr int kBlocks = 5;
  A* to;
  struct Adder {
    A* to;
    __device__ explicit Adder(const FloatSink& sink) : to(sink.to) {}
    template <int kSize>
    __device__ __forceinline__ void add(A* at, const A (&terms)[kSize]) const {
      if constexpr (kSize == 1) {
        atomicAdd(at, terms[0]);
      } else {
        constexpr int kStep = 16 / sizeof(A);
#pragma unroll
        for (int first = 0; first < kSize; first += kStep) {
          A part[kStep];
#pragma unroll
          for (int v = 0; v < kStep; ++v) part[v] = terms[first + v];
          cuda::reduce_add(at + first, part);
        }
      }
    }
  };
};

template <typename A>
struct FixedSink {
  static constexpr bool kWanted = true;
  static constexpr int kBlocks = 4;
  unsigned long long* to;
  FixedPoint point;
  struct Adder {
    unsigned long long* to;
    FixedAdder<A> adder;
    __device__ explicit Adder(const FixedSink& sink) : to(sink.to), adder(sink.point) {}
    template <int kSize>
    __device__ __forceinline__ void add(unsigned long long* at, const A (&terms)[kSize]) const {
#pragma unroll
      for (int v = 0; v < kSize; ++v) adder.add(at + v, terms[v]);
    }
  };
};

// Sums each of four numbers over a group and leaves them in `to`. From four lanes on, two exchanges
// distribute the four sums over the lanes, so that each further step adds one number instead of four.
template <typename A>
__device__ __forceinline__ void sum_dots(const Group& group, const A (&t)[4], Quad<A>& to) {
  if (group.lanes < 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const A sum = cuda::lanes_sum(t[k], group.lanes);
      if (group.lane == 0) to.at[k] = sum;
    }
    return;
  }
  const bool odd = group.lane & 1, high = group.lane & 2;
  const A low_pair = (odd ? t[1] : t[0]) + __shfl_xor_sync(kAllLanes, odd ? t[0] : t[1], 1);
  const A high_pair = (odd ? t[3] : t[2]) + __shfl_xor_sync(kAllLanes, odd ? t[2] : t[3], 1);
  A sum = (high ? high_pair : low_pair) + __shfl_xor_sync(kAllLanes, high ? low_pair : high_pair, 2);
  for (int step = 4; step < group.lanes; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (group.lane < 4) to.at[group.lane] = sum;
}

// One row of one head in phase 2.
template <typename T, bool kVector>
struct RowWalk {
  using A = accumulate_t<T>;
  static constexpr int kSize = Channels<T, kVector>::kSize;
  const T* grad_out;  // of the head
  const T* map;       // value of the row's batch and head
  int64_t map_at;     // where that is in value
  unsigned stride;    // bytes of a pixel in value
  bool active;

  __device__ __forceinline__ void load_grad(int pack, A (&grad)[kSize]) const {
    Channels<T, kVector>::load(grad_out + pack * kSize, grad);
  }

  // Walks `count` points of the group's chunk: adds to value's gradient, leaves the dots of grad_out with the
  // corners in work.dots. The whole warp calls.
  template <typename Sink>
  __device__ __forceinline__ void walk(const Workspace<A>& work, const Group& group, int packs, int count,
                                       A (&grad)[kSize], bool sampling,
                                       const typename Sink::Adder& adder) const {
#pragma unroll 1
    for (int s = group.slot; s < group.slot + count; ++s) {
      const int4 pixel = work.pixel[s];
      A dots[4] = {};
      if (active && pixel.x >= 0) {
        const Quad<A> weight = work.weight[s];
        for (int pack = group.lane; pack < packs; pack += group.lanes) {
          if (packs > group.lanes) load_grad(pack, grad);  // otherwise a lane has but one pack
          if (sampling) add_dots(pixel, pack, grad, dots);
          if (Sink::kWanted) add_value(pixel, weight, pack, packs, grad, adder);
        }
      }
      if (sampling) sum_dots(group, dots, work.dots[s]);
    }
  }

 private:
  __device__ __forceinline__ void add_dots(const int4& pixel, int pack, const A (&grad)[kSize],
                                           A (&dots)[4]) const {
    const int pixels[4] = {pixel.x, pixel.y, pixel.z, pixel.w};
    A corner[4][kSize];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      Channels<T, kVector>::load(at_pixel(map + pack * kSize, pixels[k], stride), corner[k]);
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int v = 0; v < kSize; ++v) dots[k] += grad[v] * corner[k][v];
  }

  // The sums of 16-bit channels take two reductions per pack. Lanes take the channels in another order, so
  // that each reduction covers whole sectors of memory instead of every second 16 bytes.
  template <typename Adder>
  __device__ __forceinline__ void add_value(const int4& pixel, const Quad<A>& weight, int pack, int packs,
                                            const A (&grad)[kSize], const Adder& adder) const {
    if constexpr (kSize * sizeof(A) > 16) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int channel = 4 * (half * packs + pack);
        A other[4];
        cuda::load_four(grad_out + channel, other);
        add_terms(pixel, weight, channel, other, adder);
      }
    } else {
      add_terms(pixel, weight, pack * kSize, grad, adder);
    }
  }

  template <int kCount, typename Adder>
  __device__ __forceinline__ void add_terms(const int4& pixel, const Quad<A>& weight, int channel,
                                            const A (&grad)[kCount], const Adder& adder) const {
    const int pixels[4] = {pixel.x, pixel.y, pixel.z, pixel.w};
    const auto to = adder.to + map_at + channel;
    constexpr unsigned kItem = sizeof(*adder.to);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      A terms[kCount];
#pragma unroll
      for (int v = 0; v < kCount; ++v) terms[v] = weight.at[k] * grad[v];
      adder.add(at_pixel(to, pixels[k], stride / static_cast<unsigned>(sizeof(T)) * kItem), terms);
    }
  }
};

template <typename T, bool kVector>
__device__ __forceinline__ RowWalk<T, kVector> make_walk(const Problem<T>& p, const Lanes& lanes,
                                                         const Head<T>& head, const T* out, int64_t row,
                                                         bool active) {
  const int64_t at = active ? head.batch(p, row) * p.batch_stride() + head.head * p.width : 0;
  const T* grad_out = out + p.output_of(head.query) * p.pixel_stride() + head.head * p.width;
  return {grad_out, p.value + at, at, lanes.stride, active};
}

// The gradients of the calling lane's point, from the dots that the walk left in its slot.
template <typename A>
__device__ __forceinline__ SampleGrad<A> own_grad(const Workspace<A>& work, A share, A attention,
                                                  const Corners<A>& corners) {
  const Quad<A> t = work.dots[threadIdx.x];
  return sample_grad(share * t.at[0], share * t.at[1], share * t.at[2], share * t.at[3], attention, corners);
}

// Writes a point's gradients where the row is its query's first one, and adds to them where it is a later
// one: a point has the same lane in every row, so nothing here needs atomics. Returns attention * gradient.
template <typename T>
__device__ __forceinline__ accumulate_t<T> write_point(const Problem<T>& p, const Lanes& lanes,
                                                       const Workspace<accumulate_t<T>>& work,
                                                       const Head<T>& head, const Gradients<T>& g,
                                                       int64_t row, int i, bool here, bool is_first) {
  using A = accumulate_t<T>;
  const int64_t at = head.first + i;
  const A attention = head.attention(p, i);
  SampleGrad<A> grad{};
  if (here) {
    const Point<T> point(p, lanes, work, head, row,
                         i);  // computed again: cheaper than registers during the walk
    if (point.corners.valid) {
      grad = own_grad(work, head.share, attention, point.corners);
      grad.x *= point.affine.scale_x;
      grad.y *= point.affine.scale_y;
    }
  }
  if (is_first && g.weights) grad.attention += __ldg(g.weights + at);
  if (g.offsets) {
    g.offsets[2 * at] = (is_first ? A(0) : g.offsets[2 * at]) + grad.x;
    g.offsets[2 * at + 1] = (is_first ? A(0) : g.offsets[2 * at + 1]) + grad.y;
  }
  if (g.logits) g.logits[at] = (is_first ? A(0) : g.logits[at]) + grad.attention;
  return attention * grad.attention;
}

// Gradients of value, offsets and logits. A group of lanes takes one head of one query through its rows.
template <typename T, bool kVector, typename Sink>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 3 : Sink::kBlocks)
    backward_kernel(const Problem<T> p, const LevelTable table, const Lanes lanes, const Gradients<T> g,
                    const Sink sink) {
  using A = accumulate_t<T>;
  BEVKD2_SHARED_MEMORY(memory);
  const Workspace<A> work(memory, true, table, p.levels);
  const Group group(lanes.group);
  const bool active = group.task() < p.queries * p.heads;
  const int64_t task = active ? group.task() : 0;
  const Head<T> head(p, group, active, task / p.heads, static_cast<int>(task % p.heads));
  const int samples = p.samples();
  const bool sampling = g.offsets || g.logits;
  const int warp_rows = head.warp_rows();
  A grad[Channels<T, kVector>::kSize] = {};
  if (active && group.lane < lanes.packs)
    make_walk<T, kVector>(p, lanes, head, g.out, head.row, false).load_grad(group.lane, grad);
  const typename Sink::Adder adder(sink);
  A weighted = 0;  // sum of weight * gradient, for the softmax
  for (int r = 0; r < warp_rows || r == 0; ++r) {
    const bool here = r < head.count;
    const int64_t row = head.row + (here ? r : 0);
    const RowWalk<T, kVector> walk = make_walk<T, kVector>(p, lanes, head, g.out, row, here);
    for (int base = 0; base < samples; base += group.lanes) {
      const int i = base + group.lane;
      if (here && i < samples)
        leave_point(work, Point<T>(p, lanes, work, head, row, i), head.share * head.attention(p, i));
      else
        leave_nothing(work);
      __syncwarp();
      walk.template walk<Sink>(work, group, lanes.packs, min(group.lanes, samples - base), grad, sampling,
                               adder);
      __syncwarp();
      if (sampling && active && i < samples)
        weighted += write_point(p, lanes, work, head, g, row, i, here, r == 0);
    }
  }
  if (!g.logits || !p.softmax) return;
  weighted = cuda::lanes_sum(weighted, group.lanes);
  if (!active) return;
  for (int i = group.lane; i < samples; i += group.lanes) {  // its own points again
    A* logit = g.logits + head.first + i;
    *logit = softmax_grad(head.attention(p, i), *logit, weighted);
  }
}

// The points of a head that use reference z.
struct PointsOfReference {
  int z, stride, each, count;  // each: of a level, for pillars

  template <typename T>
  __device__ PointsOfReference(const Problem<T>& p, int reference) : z(reference), stride(p.rule.count) {
    each = p.rule.pillar ? (p.points - z + stride - 1) / stride : p.points;
    each = each > 0 ? each : 0;
    count = p.rule.pillar || stride == 1 ? p.levels * each : each;
  }
  template <typename T>
  __device__ int at(const Problem<T>& p, int j) const {
    if (p.rule.pillar) return j / each * p.points + z + j % each * stride;
    return stride == 1 ? j : z * p.points + j;
  }
};

// The references' gradient. A warp makes one row of one query: its groups share the heads out, and the sums
// over heads and points are made in registers, always in the same order.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 3 : 4)
    reference_kernel(const Problem<T> p, const LevelTable table, const Lanes lanes, const Gradients<T> g) {
  using A = accumulate_t<T>;
  BEVKD2_SHARED_MEMORY(memory);
  const Workspace<A> work(memory, true, table, p.levels);
  const Group group(lanes.group);
  const int64_t query = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  if (query >= p.queries) return;  // the whole warp
  const int groups = kLanes / group.lanes, mine = static_cast<int>(threadIdx.x) % kLanes / group.lanes;
  const typename NoSink<A>::Adder nowhere(NoSink<A>{});
  const int64_t begin = p.row_begin(query), end = p.row_end(query);
  check_rows(p, begin, end);
  for (int64_t row = begin; row < end; ++row)
    for (int z = 0; z < p.rule.count; ++z) {
      const PointsOfReference points(p, z);
      A sum[4] = {};  // x, y, width, height
      for (int first = 0; first < p.heads; first += groups) {
        const bool active = first + mine < p.heads;
        const Head<T> head(p, group, active, query, active ? first + mine : 0);
        A grad[Channels<T, kVector>::kSize] = {};
        const RowWalk<T, kVector> walk = make_walk<T, kVector>(p, lanes, head, g.out, row, active);
        if (active && group.lane < lanes.packs) walk.load_grad(group.lane, grad);
        for (int base = 0; base < points.count; base += group.lanes) {
          const bool has_point = active && base + group.lane < points.count;
          const int i = has_point ? points.at(p, base + group.lane) : 0;
          if (has_point)
            leave_point(work, Point<T>(p, lanes, work, head, row, i), head.share * head.attention(p, i));
          else
            leave_nothing(work);
          __syncwarp();
          walk.template walk<NoSink<A>>(work, group, lanes.packs, min(group.lanes, points.count - base), grad,
                                        true, nowhere);
          __syncwarp();
          if (!has_point) continue;
          const Point<T> point(p, lanes, work, head, row, i);
          if (!point.corners.valid) continue;
          const SampleGrad<A> s = own_grad(work, head.share, head.attention(p, i), point.corners);
          const A box = A(0.5) / A(p.points), by_x = s.x * A(point.level.width),
                  by_y = s.y * A(point.level.height);
          sum[0] += by_x;
          sum[1] += by_y;
          sum[2] += by_x * point.x * box;
          sum[3] += by_y * point.y * box;
        }
      }
      A* to = g.references + (row * p.rule.count + z) * p.rule.dims;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sum[k] = cuda::lanes_sum(sum[k]);
        if (k < p.rule.dims && threadIdx.x % kLanes == 0) to[k] = sum[k];
      }
    }
}

}  // namespace bevkd2::msda
