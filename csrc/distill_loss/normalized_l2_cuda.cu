// The distance of normalised features on CUDA. A block takes one channel of a level, in three passes: means,
// moments, loss and gradient. Blocks leave their losses in memory, and one block per level adds them in
// order.
#include <algorithm>

#include "device_io.cuh"
#include "normalized_l2.h"

namespace bevkd2::distill::normalized_l2 {
namespace {

using cuda::kLanes;

constexpr int kThreads = 512;
constexpr int kMaxLevels = 8;  // per launch

struct Part {
  Level level;
  bool eights;    // pixels are read eight at a time
  int64_t begin;  // first block
};

struct Launch {
  Part part[kMaxLevels];
  int levels, first_level;
  const void* upstream;
  double factor, epsilon;
};

__device__ inline double share_of(const Launch& p, int l) {
  const Level& level = p.part[l].level;
  return p.factor / (static_cast<double>(level.entries()) * static_cast<double>(level.channels));
}

// Calls function(s, t, sample, pixel) for the entries of a channel that this thread takes, V at a time.
template <typename A, int V, typename F>
__device__ void for_packs(const Level& level, int64_t channel, const F& function) {
  A s[V], t[V];
  for (int64_t sample = 0; sample < level.batch; ++sample)
    for (int64_t pixel = int64_t{threadIdx.x} * V; pixel < level.pixels; pixel += kThreads * V) {
      load(level.student.data, level.student.dtype, level.student.at(sample, channel, pixel), s);
      load(level.teacher.data, level.teacher.dtype, level.teacher.at(sample, channel, pixel), t);
      function(s, t, sample, pixel);
    }
}

// This thread's part of the sum of (x - y)^2 over a channel; writes its gradients.
template <typename A, int V>
__device__ double channel_loss(const Level& level, int64_t channel, double epsilon, A coefficient,
                               double* scratch) {
  const double entries = static_cast<double>(level.entries());
  // Sums are of the differences from the first entry: those of a constant channel are 0 without rounding.
  A first_s[1], first_t[1];
  load(level.student.data, level.student.dtype, level.student.at(0, channel, 0), first_s);
  load(level.teacher.data, level.teacher.dtype, level.teacher.at(0, channel, 0), first_t);
  double total_s = 0, total_t = 0;
  for_packs<A, V>(level, channel, [&](const A(&s)[V], const A(&t)[V], int64_t, int64_t) {
    A sum_s = 0, sum_t = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sum_s += s[j] - first_s[0];
      sum_t += t[j] - first_t[0];
    }
    total_s += static_cast<double>(sum_s);
    total_t += static_cast<double>(sum_t);
  });
  total_s = cuda::block_sum(total_s, scratch);
  total_t = cuda::block_sum(total_t, scratch);
  const A mean_s = static_cast<A>(static_cast<double>(first_s[0]) + total_s / entries);
  const A mean_t = static_cast<A>(static_cast<double>(first_t[0]) + total_t / entries);
  Moments moments;
  for_packs<A, V>(level, channel, [&](const A(&s)[V], const A(&t)[V], int64_t, int64_t) {
    A student = 0, teacher = 0, product = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A a = s[j] - mean_s, b = t[j] - mean_t;
      student += a * a;
      teacher += b * b;
      product += a * b;
    }
    moments.student += static_cast<double>(student);
    moments.teacher += static_cast<double>(teacher);
    moments.product += static_cast<double>(product);
  });
  moments.student = cuda::block_sum(moments.student, scratch);
  moments.teacher = cuda::block_sum(moments.teacher, scratch);
  moments.product = cuda::block_sum(moments.product, scratch);
  const Normalizer<A> by = normalizer_of<A>(moments, entries, epsilon);
  const A scale = coefficient * by.inverse_s;
  double loss = 0;
  for_packs<A, V>(level, channel, [&](const A(&s)[V], const A(&t)[V], int64_t sample, int64_t pixel) {
    A out[V], sum = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A x = (s[j] - mean_s) * by.inverse_s, y = (t[j] - mean_t) * by.inverse_t;
      sum += (x - y) * (x - y);
      out[j] = scale * (by.keep * x - y);
    }
    loss += static_cast<double>(sum);
    if (level.grad.data) store(out, level.grad.dtype, level.grad.at(sample, channel, pixel), level.grad.data);
  });
  return loss;
}

// partials: the sums of all channels.
template <typename A, int V>
__global__ void __launch_bounds__(kThreads, 2)
    channels_kernel(const __grid_constant__ Launch p, double* partials) {
  BEVKD2_SHARED_MEMORY(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  int l = 0;
  while (l + 1 < p.levels && int64_t{blockIdx.x} >= p.part[l + 1].begin) ++l;
  const Part& part = p.part[l];
  const int64_t channel = int64_t{blockIdx.x} - part.begin;
  const double upstream =
      p.upstream ? static_cast<double>(static_cast<const A*>(p.upstream)[p.first_level + l]) : 1;
  const A coefficient = static_cast<A>(share_of(p, l) * upstream);
  double loss = 0;
  if (V == 1 || !part.eights)
    loss = channel_loss<A, 1>(part.level, channel, p.epsilon, coefficient, scratch);
  else
    loss = channel_loss<A, V>(part.level, channel, p.epsilon, coefficient, scratch);
  loss = cuda::block_sum(loss, scratch);
  if (threadIdx.x == 0) partials[blockIdx.x] = loss;
}

// One block per level.
template <typename A>
__global__ void __launch_bounds__(kThreads, 2)
    finish_kernel(const __grid_constant__ Launch p, const double* partials, A* losses) {
  BEVKD2_SHARED_MEMORY(memory);
  const Part& part = p.part[blockIdx.x];
  double loss = 0;
  for (int64_t i = threadIdx.x; i < part.level.channels; i += kThreads) loss += partials[part.begin + i];
  loss = cuda::block_sum(loss, reinterpret_cast<double*>(memory));
  if (threadIdx.x == 0)
    losses[p.first_level + blockIdx.x] =
        static_cast<A>(part.level.channels > 0 ? share_of(p, blockIdx.x) / 2 * loss : 0);
}

Part make_part(const Level& level, int64_t begin) {
  const bool eights = in_eights(level.student, 2, level.pixels) &&
                      in_eights(level.teacher, 2, level.pixels) && in_eights(level.grad, 2, level.pixels);
  return {level, eights, begin};
}

struct Cuda {
  template <typename A>
  static void run_levels(const Problem& p, const Tensor& losses, size_t first) {
    const cuda::OnDevice device(losses);
    Launch launch{};
    launch.levels = static_cast<int>(std::min<size_t>(kMaxLevels, p.levels.size() - first));
    launch.first_level = static_cast<int>(first);
    launch.upstream = p.upstream;
    launch.factor = p.factor;
    launch.epsilon = p.epsilon;
    int64_t blocks = 0;
    for (int l = 0; l < launch.levels; ++l) {
      launch.part[l] = make_part(p.levels[first + l], blocks);
      blocks += launch.part[l].level.channels;
    }
    Tensor partials = torch::stable::new_empty(losses, {blocks}, ScalarType::Double);
    double* sums = static_cast<double*>(partials.mutable_data_ptr());
    constexpr int kEach = std::is_same_v<A, float> ? 8 : 1;
    constexpr size_t kShared = kLanes * sizeof(double);
    cuda::launch(channels_kernel<A, kEach>, cuda::blocks_for(blocks, 1), kThreads, kShared, device.stream,
                 launch, sums);
    cuda::launch(finish_kernel<A>, launch.levels, kThreads, kShared, device.stream, launch, sums,
                 static_cast<A*>(losses.mutable_data_ptr()));
  }

  static void run(const Problem& p, Tensor& losses) {
    for (size_t first = 0; first < p.levels.size(); first += kMaxLevels)
      dispatch_accumulate(p.dtype, [&](auto zero) { run_levels<decltype(zero)>(p, losses, first); });
  }
};

}  // namespace
}  // namespace bevkd2::distill::normalized_l2

BEVKD2_CUDA_LIBRARY(m) {
  using namespace bevkd2::distill::normalized_l2;
  Ops<Cuda>::register_all(m);
}
