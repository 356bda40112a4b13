// BEV responses on CUDA. A block takes 64 cells: its warps sum the channels of both embeddings, each in its
// own layout, then one thread per cell computes the difference. Blocks leave their sums in memory, and a
// single block adds them in order, so that results are reproducible.
#include "bev_response.h"
#include "device_io.cuh"

namespace bevkd2::distill::bev_response {
namespace {

using cuda::kLanes;

constexpr int kCells = 64;
constexpr int kThreads = 256;

// Where a block's cells begin, and how many there are.
struct Cells {
  int64_t sample, first;
  int count;
};

__device__ inline Cells cells_of_block(int64_t cells) {
  const int64_t groups = (cells + kCells - 1) / kCells;
  const int64_t first = blockIdx.x % groups * kCells;
  const int64_t left = cells - first;
  return {blockIdx.x / groups, first, static_cast<int>(left < kCells ? left : kCells)};
}

template <typename A>
__device__ inline A absolute(A x) {
  return x < A(0) ? -x : x;
}

// Channels adjacent: one warp per cell.
template <typename A, int V>
__device__ void sum_channels(const Embedding& e, const Cells& cells, A* out) {
  const int lane = threadIdx.x % kLanes;
  for (int i = threadIdx.x / kLanes; i < cells.count; i += kThreads / kLanes) {
    const int64_t start = e.data.at(cells.sample, cells.first + i, 0);
    A sum = 0;
    for (int64_t c = lane * V; c < e.channels; c += kLanes * V) {
      A numbers[V];
      load(e.data.data, e.data.dtype, start + c, numbers);
#pragma unroll
      for (int j = 0; j < V; ++j) sum += absolute(numbers[j]);
    }
    sum = cuda::lanes_sum(sum);
    if (lane == 0) out[i] = sum;
  }
}

// Cells adjacent: neighbouring threads take V cells each, and each such row of threads takes a part of the
// channels. `parts` has kThreads * V numbers.
template <typename A, int V>
__device__ void sum_rows(const Embedding& e, const Cells& cells, A* parts, A* out) {
  constexpr int kPacks = kCells / V, kGroups = kThreads / kPacks;
  const int pack = threadIdx.x % kPacks, group = threadIdx.x / kPacks;
  A sums[V] = {};
  if (pack * V < cells.count) {
    for (int64_t c = group; c < e.channels; c += kGroups) {
      A numbers[V];
      load(e.data.data, e.data.dtype, e.data.at(cells.sample, cells.first + pack * V, c), numbers);
#pragma unroll
      for (int j = 0; j < V; ++j) sums[j] += absolute(numbers[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) parts[group * kCells + pack * V + j] = sums[j];
  __syncthreads();
  if (threadIdx.x < kCells) {
    A sum = 0;
    for (int g = 0; g < kGroups; ++g) sum += parts[g * kCells + threadIdx.x];
    out[threadIdx.x] = sum;
  }
  __syncthreads();  // `parts` is used again
}

template <typename A>
__device__ void responses(const Embedding& e, bool eights, const Cells& cells, A* parts, A* out) {
  if (e.channels_adjacent) {
    if (eights)
      sum_channels<A, 8>(e, cells, out);
    else
      sum_channels<A, 1>(e, cells, out);
  } else {
    if (eights)
      sum_rows<A, 8>(e, cells, parts, out);
    else
      sum_rows<A, 1>(e, cells, parts, out);
  }
}

// partials: squares and counted of every block.
template <typename A>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(Forward p, bool student_eights, bool teacher_eights, double* partials) {
  BEVKD2_SHARED_MEMORY(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  A* ours = reinterpret_cast<A*>(scratch + kLanes);
  A *theirs = ours + kCells, *parts = theirs + kCells;
  const Cells cells = cells_of_block(p.cells);
  responses(p.student, student_eights, cells, parts, ours);
  responses(p.teacher, teacher_eights, cells, parts, theirs);
  __syncthreads();
  double squares = 0, counted = 0;
  const int i = threadIdx.x;
  if (i < cells.count) {
    const int64_t at = cells.sample * p.cells + cells.first + i;
    const A weight = p.weights ? static_cast<const A*>(p.weights)[at] : A(1);
    const A student = ours[i] / static_cast<A>(p.student.channels);
    const A teacher = theirs[i] / static_cast<A>(p.teacher.channels);
    const A difference = weight == A(0) ? A(0) : student - teacher;
    if (p.differences) static_cast<A*>(p.differences)[at] = weight * difference;
    squares = static_cast<double>(weight * difference * difference);
    counted = static_cast<double>(weight);
  }
  squares = cuda::block_sum(squares, scratch);
  counted = cuda::block_sum(counted, scratch);
  if (i == 0) {
    partials[2 * int64_t{blockIdx.x}] = squares;
    partials[2 * int64_t{blockIdx.x} + 1] = counted;
  }
}

// One block: the loss and the scales.
template <typename A>
__global__ void __launch_bounds__(kThreads, 2)
    finish_kernel(Forward p, const double* partials, int64_t groups) {
  BEVKD2_SHARED_MEMORY(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  Totals<A> totals;
  A* scales = static_cast<A*>(p.scales);
  for (int64_t b = 0; b < p.batch; ++b) {
    double squares = 0, counted = 0;
    for (int64_t g = threadIdx.x; g < groups; g += kThreads) {
      squares += partials[2 * (b * groups + g)];
      counted += partials[2 * (b * groups + g) + 1];
    }
    squares = cuda::block_sum(squares, scratch);
    totals.counted += cuda::block_sum(counted, scratch);
    totals.squares += squares;
    totals.norms += sqrt(squares);
    if (scales && threadIdx.x == 0) scales[b] = static_cast<A>(sqrt(squares));
  }
  if (threadIdx.x != 0) return;
  *static_cast<A*>(p.loss) = static_cast<A>(totals.loss(p.reduction, p.batch, p.factor));
  for (int64_t b = 0; scales && b < p.batch; ++b)
    scales[b] = totals.scale(p.reduction, p.batch, p.factor, static_cast<double>(scales[b]));
}

template <typename A>
__device__ inline A signed_like(A gradient, A x) {
  return x > A(0) ? gradient : (x < A(0) ? -gradient : A(0));
}

// V gradients with the student's signs. NaN counts as sign 0: a cell of weight 0 is ignored, even if NaN.
template <typename A, int V>
__device__ void write_signs(const Backward& p, int64_t from, int64_t to, const A (&gradients)[V]) {
  A numbers[V];
  load(p.student.data.data, p.student.data.dtype, from, numbers);
#pragma unroll
  for (int j = 0; j < V; ++j) numbers[j] = signed_like(gradients[j], numbers[j]);
  store(numbers, p.grad.dtype, to, p.grad.data);
}

template <typename A, int V>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(Backward p) {
  const Cells cells = cells_of_block(p.cells);
  const A factor = *static_cast<const A*>(p.upstream) * static_cast<const A*>(p.scales)[cells.sample] /
                   static_cast<A>(p.student.channels);
  const A* differences = static_cast<const A*>(p.differences) + cells.sample * p.cells + cells.first;
  A gradients[V];
  if (p.student.channels_adjacent) {
    for (int i = threadIdx.x / kLanes; i < cells.count; i += kThreads / kLanes) {
#pragma unroll
      for (int j = 0; j < V; ++j) gradients[j] = factor * differences[i];
      const int64_t from = p.student.data.at(cells.sample, cells.first + i, 0);
      const int64_t to = p.grad.at(cells.sample, cells.first + i, 0);
      for (int64_t c = threadIdx.x % kLanes * V; c < p.student.channels; c += kLanes * V)
        write_signs(p, from + c, to + c, gradients);
    }
    return;
  }
  constexpr int kPacks = kCells / V;
  const int i = threadIdx.x % kPacks * V;
  if (i >= cells.count) return;
#pragma unroll
  for (int j = 0; j < V; ++j) gradients[j] = factor * differences[i + j];
  for (int64_t c = threadIdx.x / kPacks; c < p.student.channels; c += kThreads / kPacks)
    write_signs(p, p.student.data.at(cells.sample, cells.first + i, c),
                p.grad.at(cells.sample, cells.first + i, c), gradients);
}

template <typename A>
bool in_eights(const Embedding& e, int64_t cells) {
  return std::is_same_v<A, float> &&
         distill::in_eights(e.data, e.channels_adjacent ? 2 : 1, e.channels_adjacent ? e.channels : cells);
}

struct Cuda {
  template <typename A>
  static void forward(const Forward& p, const Tensor& student) {
    const cuda::OnDevice device(student);
    const int64_t groups = (p.cells + kCells - 1) / kCells;
    Tensor partials = torch::stable::new_empty(student, {p.batch * groups, 2}, ScalarType::Double);
    double* sums = static_cast<double*>(partials.mutable_data_ptr());
    const size_t shared = kLanes * sizeof(double) + (2 * kCells + kThreads * 8) * sizeof(A);
    cuda::launch(forward_kernel<A>, cuda::blocks_for(p.batch * groups, 1), kThreads, shared, device.stream, p,
                 in_eights<A>(p.student, p.cells), in_eights<A>(p.teacher, p.cells), sums);
    cuda::launch(finish_kernel<A>, 1, kThreads, kLanes * sizeof(double), device.stream, p, sums, groups);
  }

  template <typename A>
  static void backward(const Backward& p, const Tensor& student) {
    const cuda::OnDevice device(student);
    const int64_t groups = (p.cells + kCells - 1) / kCells;
    const int last = p.student.channels_adjacent ? 2 : 1;
    const bool eights = in_eights<A>(p.student, p.cells) &&
                        distill::in_eights(p.grad, last, last == 2 ? p.student.channels : p.cells);
    cuda::launch(eights ? backward_kernel<A, 8> : backward_kernel<A, 1>,
                 cuda::blocks_for(p.batch * groups, 1), kThreads, 0, device.stream, p);
  }
};

}  // namespace
}  // namespace bevkd2::distill::bev_response

BEVKD2_CUDA_LIBRARY(m) {
  using namespace bevkd2::distill::bev_response;
  Ops<Cuda>::register_all(m);
}
