// Multi-scale deformable attention on CUDA: the backward pass.
#include <algorithm>
#include <optional>

#include "ms_deform_attn_cuda_backward.cuh"
#include "ms_deform_attn_cuda_launch.h"

namespace bevkd2::msda {
namespace {

int log2_rounded_up(int64_t n) {
  int log2 = 0;
  while (log2 < 62 && int64_t{1} << log2 < n) ++log2;
  return log2;
}

constexpr unsigned kSweepThreads = 256, kSweepBlocks = 1024;

unsigned sweep_blocks(int64_t count) {
  return static_cast<unsigned>(std::min<int64_t>(kSweepBlocks, (count + kSweepThreads - 1) / kSweepThreads));
}

// Fixed point in place of reductions in A: the sums, and their scale from what the tensors hold.
template <typename T>
struct FixedSums {
  Tensor sums, state;
  FixedPoint point;

  FixedSums(const Arguments& a, const Problem<T>& p, const Gradients<T>& g, cudaStream_t stream)
      : sums(torch::stable::new_zeros(a.value, a.value.sizes(), ScalarType::Long)),
        state(torch::stable::new_zeros(a.value, {FixedPoint::kStates}, ScalarType::Long)) {
    const int64_t rows = p.row_value ? p.rows : p.queries_per_batch;  // that read one value batch
    const int64_t terms = rows * (p.softmax ? 1 : p.samples());       // a softmax's weights sum to 1
    point = {static_cast<unsigned long long*>(state.mutable_data_ptr()), p.softmax, log2_rounded_up(terms)};
    const int64_t grads = p.outputs() * p.pixel_stride(), weights = p.queries * p.heads * p.samples();
    cuda::launch(largest_kernel<T>, sweep_blocks(grads), kSweepThreads, 0, stream, g.out, grads, point.state);
    if (!p.softmax)
      cuda::launch(largest_kernel<accumulate_t<T>>, sweep_blocks(weights), kSweepThreads, 0, stream,
                   p.weights, weights, point.state + 1);
  }

  unsigned long long* data() const { return static_cast<unsigned long long*>(sums.mutable_data_ptr()); }
};

// Runs the kernels that one call needs, with value's gradient going to `sink`.
template <typename T, typename Sink>
void launch_backward(const Arguments& a, const Problem<T>& p, const Gradients<T>& g, const Sink& sink,
                     cudaStream_t stream) {
  const LevelTable table = make_table(a.levels);
  const size_t shared = Workspace<accumulate_t<T>>::bytes(true, p.levels);
  with_channels(p, g.out, [&](auto channels, const Lanes& lanes) {
    constexpr bool kVector = decltype(channels)::kIsVector;
    if (Sink::kWanted || g.offsets || g.logits)
      cuda::launch(backward_kernel<T, kVector, Sink>, lanes.blocks(p.queries * p.heads), kThreads, shared,
                   stream, p, table, lanes, g, sink);
    if (g.references)
      cuda::launch(reference_kernel<T, kVector>, cuda::blocks_for(p.queries, kThreads / kLanes), kThreads,
                   shared, stream, p, table, lanes, g);
  });
}

}  // namespace

template <typename T>
void cuda_backward(const Arguments& a, const Gradients<T>& g) {
  using A = accumulate_t<T>;
  const Problem<T> p = make_problem<T>(a);
  const cuda::OnDevice device(a.value);
  const bool empty = p.queries == 0 || p.heads == 0 || p.samples() == 0;
  if (g.value && (empty || !g.deterministic))  // fixed point writes every number itself
    cuda::fill_zero(g.value, a.value.numel() * sizeof(A), device.stream);
  if (g.references)  // row_splits may leave rows out
    cuda::fill_zero(g.references, a.references->numel() * sizeof(A), device.stream);
  if (empty) return;
  if (!g.value) return launch_backward(a, p, g, NoSink<A>{}, device.stream);
  if (!g.deterministic) return launch_backward(a, p, g, FloatSink<A>{g.value}, device.stream);
  const FixedSums<T> fixed(a, p, g, device.stream);
  launch_backward(a, p, g, FixedSink<A>{fixed.data(), fixed.point}, device.stream);
  const int64_t count = a.value.numel();
  cuda::launch(from_fixed_kernel<A>, sweep_blocks(count), kSweepThreads, 0, device.stream,
               static_cast<const unsigned long long*>(fixed.data()), count, fixed.point, g.value);
}

template void cuda_backward(const Arguments&, const Gradients<double>&);
template void cuda_backward(const Arguments&, const Gradients<float>&);
template void cuda_backward(const Arguments&, const Gradients<Half>&);
template void cuda_backward(const Arguments&, const Gradients<BFloat16>&);

}  // namespace bevkd2::msda
