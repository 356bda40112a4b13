// Multi-scale deformable attention on CUDA: the forward pass. A group of lanes makes one head of one output,
// over all its queues and rows, in registers.
#include "ms_deform_attn_cuda_launch.h"

namespace bevkd2::msda {
namespace {

// Phase 2: adds `count` points of the group's chunk to the calling lane's channels.
template <typename T, bool kVector>
__device__ __forceinline__ void add_points(const Workspace<accumulate_t<T>>& work, int slot, int count,
                                           const T* map, unsigned stride,
                                           accumulate_t<T> (&sum)[Channels<T, kVector>::kSize]) {
  using A = accumulate_t<T>;
  constexpr int kSize = Channels<T, kVector>::kSize;
#pragma unroll 1
  for (int s = slot; s < slot + count; ++s) {
    const int4 pixel = work.pixel[s];
    if (pixel.x < 0) continue;
    const Quad<A> weight = work.weight[s];
    const int pixels[4] = {pixel.x, pixel.y, pixel.z, pixel.w};
    A corner[4][kSize];
#pragma unroll
    for (int k = 0; k < 4; ++k) Channels<T, kVector>::load(at_pixel(map, pixels[k], stride), corner[k]);
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int v = 0; v < kSize; ++v) sum[v] += weight.at[k] * corner[k][v];
  }
}

// double would spill its registers if as many blocks had to fit on a multiprocessor.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 4 : 6)
    forward_kernel(const Problem<T> p, const LevelTable table, const Lanes lanes, T* out,
                   accumulate_t<T>* weights) {
  using A = accumulate_t<T>;
  constexpr int kSize = Channels<T, kVector>::kSize;
  BEVKD2_SHARED_MEMORY(memory);
  const Workspace<A> work(memory, false, table, p.levels);
  const Group group(lanes.group);
  const int64_t task = group.task();
  const bool active = task < p.outputs() * p.heads;
  const int64_t output = active ? task / p.heads : 0;
  const int of_head = active ? static_cast<int>(task % p.heads) : 0;
  const int samples = p.samples();
  // Once, unless a head is very wide; a head without channels has weights too.
  for (int first = 0; first == 0 || first < lanes.packs; first += group.lanes) {
    const bool mine = first + group.lane < lanes.packs;
    const int channel = of_head * p.width + (mine ? first + group.lane : 0) * kSize;
    A sum[kSize] = {};
    for (int queue = 0; queue < p.queues; ++queue) {
      const Head<T> head(p, group, active, p.query_of(output, queue), of_head);
      const int warp_rows = head.warp_rows();
      if (weights && first == 0 && active)
        for (int i = group.lane; i < samples; i += group.lanes)
          weights[head.first + i] = head.attention(p, i);
      for (int r = 0; r < warp_rows; ++r) {
        const bool here = r < head.count;
        const int64_t row = head.row + (here ? r : 0);
        const T* map = p.value + (here ? head.batch(p, row) : 0) * p.batch_stride() + channel;
        for (int base = 0; base < samples; base += group.lanes) {
          const int i = base + group.lane;
          if (here && i < samples)
            leave_point(work, Point<T>(p, lanes, work, head, row, i), head.attention(p, i) * head.share);
          else
            leave_nothing(work);
          __syncwarp();
          if (here && mine)
            add_points<T, kVector>(work, group.slot, min(group.lanes, samples - base), map, lanes.stride,
                                   sum);
          __syncwarp();
        }
      }
    }
    if (active && mine) Channels<T, kVector>::store(out + output * p.pixel_stride() + channel, sum);
  }
}

}  // namespace

template <typename T>
void cuda_forward(const Arguments& a, T* out, accumulate_t<T>* weights) {
  const Problem<T> p = make_problem<T>(a);
  const cuda::OnDevice device(a.value);
  with_channels(p, out, [&](auto channels, const Lanes& lanes) {
    cuda::launch(forward_kernel<T, decltype(channels)::kIsVector>, lanes.blocks(p.outputs() * p.heads),
                 kThreads, Workspace<accumulate_t<T>>::bytes(false, p.levels), device.stream, p,
                 make_table(a.levels), lanes, out, weights);
  });
}

template void cuda_forward(const Arguments&, double*, double*);
template void cuda_forward(const Arguments&, float*, float*);
template void cuda_forward(const Arguments&, Half*, float*);
template void cuda_forward(const Arguments&, BFloat16*, float*);

}  // namespace bevkd2::msda
