// What the CUDA kernels of deformable attention share.
//
// A group of lanes (a power of two, at most a warp) works for one head of one query. Points are handled in
// chunks of as many as the group has lanes. Phase 1, one point per lane: coordinates, softmax weight and
// corners, stored in shared memory as four pixels and four weights. Phase 2, one pack of channels per lane:
// all lanes of the group go through the points of the chunk together. Only warps synchronise; two warps share
// nothing but the table of levels.
#pragma once

#include <type_traits>

#include "../core/cuda.cuh"
#include "ms_deform_attn_problem.h"

namespace bevkd2::msda {

using cuda::kAllLanes;
using cuda::kLanes;

constexpr int kThreads = 128;  // of a block
constexpr int kMaxLevels = 256;

struct LevelTable {
  Level level[kMaxLevels];
};

template <typename A>
struct alignas(16) Quad {
  A at[4];
};

// i / divisor by one multiplication, exact where i * divisor < 2^31: with m = ceil(2^31 / divisor), i * m is
// above i / divisor * 2^31 by less than i, which is less than 2^31 / divisor.
struct Quotient {
  unsigned multiplier;

  explicit Quotient(int divisor)
      : multiplier(static_cast<unsigned>(((int64_t{1} << 31) + divisor - 1) / divisor)) {}
  __device__ int of(int i) const {
    return static_cast<int>(static_cast<uint64_t>(static_cast<unsigned>(i)) * multiplier >> 31);
  }
};

// How the channels of a head are distributed over lanes, and values that save a kernel divisions.
struct Lanes {
  int packs;         // of a head's channels
  int group;         // lanes of a group
  unsigned stride;   // bytes from a pixel to the next in value
  Quotient points;   // sample / points is its level
  Quotient pillars;  // point / references

  unsigned blocks(int64_t tasks) const { return cuda::blocks_for(tasks, kThreads / group); }
};

// One pack of channels: sixteen bytes of T, or one element where those do not fit.
template <typename T, bool kVector>
struct Channels {
  using A = accumulate_t<T>;
  static constexpr bool kIsVector = kVector;
  static constexpr int kSize = kVector ? cuda::Pack<T>::kSize : 1;

  __device__ __forceinline__ static void load(const T* from, A (&to)[kSize]) {
    if constexpr (kVector) {
      cuda::load_floats(from, to);
    } else {
      to[0] = static_cast<A>(cuda::load1(from));
    }
  }

  __device__ __forceinline__ static void store(T* to, const A (&from)[kSize]) {
    if constexpr (kVector) {
      cuda::Pack<T> pack;
#pragma unroll
      for (int v = 0; v < kSize; ++v) pack.item[v] = static_cast<T>(from[v]);
      cuda::store16(to, pack);
    } else {
      *to = static_cast<T>(from[0]);
    }
  }
};

// The calling lane's place in its group.
struct Group {
  int lanes;  // of a group
  int lane;   // in the group
  int slot;   // of the group's first lane in the block's shared memory

  __device__ explicit Group(int size)
      : lanes(size),
        lane(static_cast<int>(threadIdx.x) & (size - 1)),
        slot(static_cast<int>(threadIdx.x) - lane) {}

  __device__ int64_t task() const {
    return static_cast<int64_t>(blockIdx.x) * (kThreads / lanes) + slot / lanes;
  }
};

// The block's shared memory: the levels, and what phase 1 stores for phase 2, one slot per thread. `dots` is
// for the backward pass only.
template <typename A>
struct Workspace {
  int4* pixel;      // the corners' pixels in value; the first is negative where the point is outside
  Quad<A>* weight;  // the corners' weights, attention included
  Quad<A>* dots;
  Level* levels;

  static size_t bytes(bool with_dots, int levels) {
    return kThreads * (sizeof(int4) + (with_dots ? 2 : 1) * sizeof(Quad<A>)) + levels * sizeof(Level);
  }

  // All threads of a block construct it together.
  __device__ Workspace(unsigned char* memory, bool with_dots, const LevelTable& table, int count) {
    pixel = reinterpret_cast<int4*>(memory);
    weight = reinterpret_cast<Quad<A>*>(pixel + kThreads);
    dots = weight + kThreads;
    levels = reinterpret_cast<Level*>(with_dots ? dots + kThreads : dots);
    for (int l = threadIdx.x; l < count; l += kThreads) levels[l] = table.level[l];
    __syncthreads();
  }
};

// Rows come from the user's tensors, which only the device can read without a synchronisation.
template <typename T>
__device__ void check_rows(const Problem<T>& p, int64_t begin, int64_t end) {
  if (begin < 0 || begin > end || end > p.rows || end - begin > 0x7FFFFFFF)
    cuda::fail("ms_deform_attn_ragged: row_splits must ascend from 0 to the number of rows");
}

// One head of one query, as its group sees it. `active` is false where there are fewer tasks than groups:
// such a group takes part in its warp's synchronisation and reads and writes nothing.
template <typename T>
struct Head {
  using A = accumulate_t<T>;
  bool active;
  int head;
  int64_t query;
  int64_t first;      // of its points in offsets and weights
  int64_t row;        // its first row
  int count;          // of its rows
  int64_t own_batch;  // the value batch that they read, where row_value does not say
  A share;            // weight of a row in its output
  A maximum = 0, inverse_sum = 1;

  __device__ Head(const Problem<T>& p, const Group& group, bool is_active, int64_t of_query, int of_head)
      : active(is_active), head(of_head), query(of_query), first((query * p.heads + head) * p.samples()) {
    row = active ? p.row_begin(query) : 0;
    const int64_t end = active ? p.row_end(query) : 0;
    check_rows(p, row, end);
    count = static_cast<int>(end - row);
    own_batch = p.row_value ? 0 : query / p.queries_per_batch;
    share = active ? p.share_of(query) : A(0);
    if (p.softmax) set_softmax(p, group);
  }

  __device__ A logit(const Problem<T>& p, int i) const { return __ldg(p.weights + first + i); }

  __device__ A attention(const Problem<T>& p, int i) const {
    return p.softmax ? softmax_weight(logit(p, i), maximum, inverse_sum) : logit(p, i);
  }

  __device__ int64_t batch(const Problem<T>& p, int64_t at_row) const {
    const int64_t batch = p.row_value ? p.row_value[at_row] : own_batch;
    if (batch < 0 || batch >= p.batches) cuda::fail("ms_deform_attn_ragged: row_value out of range");
    return batch;
  }

  // The largest number of rows of the warp's heads, which all its groups go through together.
  __device__ int warp_rows() const { return cuda::lanes_max(count); }

 private:
  __device__ void set_softmax(const Problem<T>& p, const Group& group) {
    const int samples = active ? p.samples() : 0;
    A highest = samples > 0 ? logit(p, 0) : A(0);
    for (int i = group.lane; i < samples; i += group.lanes) {
      const A other = logit(p, i);
      highest = other > highest ? other : highest;
    }
    maximum = cuda::lanes_max(highest, group.lanes);
    A sum = 0;
    for (int i = group.lane; i < samples; i += group.lanes) sum += softmax_weight(logit(p, i), maximum, A(1));
    inverse_sum = A(1) / cuda::lanes_sum(sum, group.lanes);
  }
};

// Point i of a row, in the lane that owns it.
template <typename T>
struct Point {
  using A = accumulate_t<T>;
  Level level;
  A x, y;  // its offset
  Affine<A> affine;
  Corners<A> corners;

  __device__ __forceinline__ Point(const Problem<T>& p, const Lanes& lanes, const Workspace<A>& work,
                                   const Head<T>& head, int64_t row, int i)
      : Point(p, lanes, work, head, row, i, lanes.points.of(i)) {}

 private:
  __device__ __forceinline__ Point(const Problem<T>& p, const Lanes& lanes, const Workspace<A>& work,
                                   const Head<T>& head, int64_t row, int i, int l)
      : level(work.levels[l]),
        x(__ldg(p.offsets + 2 * (head.first + i))),
        y(__ldg(p.offsets + 2 * (head.first + i) + 1)),
        affine(affine_at(p.rule, reference(p, lanes, row, i, l), p.points, A(level.width), A(level.height))),
        corners(corner_setup(affine.base_x + affine.scale_x * x, affine.base_y + affine.scale_y * y,
                             level.width, level.height)) {}

  __device__ __forceinline__ static const A* reference(const Problem<T>& p, const Lanes& lanes, int64_t row,
                                                       int i, int l) {
    if (p.rule.dims == 0) return nullptr;
    int z = p.rule.count == 1 ? 0 : l;
    if (p.rule.pillar) {
      const int point = i - l * p.points;
      z = point - lanes.pillars.of(point) * p.rule.count;
    }
    return p.references_of(row) + z * p.rule.dims;
  }
};

// The channels of a pixel, `stride` bytes after those of the pixel before.
template <typename T>
__device__ __forceinline__ T* at_pixel(T* map, int pixel, unsigned stride) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(map) +
                              static_cast<uint64_t>(static_cast<unsigned>(pixel)) * stride);
}

// Phase 1 for the calling lane's slot. Points outside the map have a negative pixel in their slot.
template <typename A>
__device__ __forceinline__ void leave_nothing(const Workspace<A>& work) {
  work.pixel[threadIdx.x] = make_int4(-1, 0, 0, 0);
}

template <typename T, typename A>
__device__ __forceinline__ void leave_point(const Workspace<A>& work, const Point<T>& point, A attention) {
  const Corners<A>& c = point.corners;
  if (!c.valid) return leave_nothing(work);
  const int row0 = point.level.start + c.y0 * point.level.width;
  const int row1 = point.level.start + c.y1 * point.level.width;
  const A weight0 = attention * c.weight_y0, weight1 = attention * c.weight_y1;
  work.pixel[threadIdx.x] = make_int4(row0 + c.x0, row0 + c.x1, row1 + c.x0, row1 + c.x1);
  work.weight[threadIdx.x] = {
      {weight0 * c.weight_x0, weight0 * c.weight_x1, weight1 * c.weight_x0, weight1 * c.weight_x1}};
}

}  // namespace bevkd2::msda
