// KL divergence of softmaxes on CUDA. All levels are one launch. A block takes some softmaxes (rows), reads
// them once for their statistics and again, from the cache, for the gradient. Blocks leave their losses in
// memory, and one block per level adds them in order, so that results are reproducible.
#include <algorithm>

#include "device_io.cuh"
#include "softmax_kl.h"
#include "softmax_statistics.cuh"

namespace bevkd2::distill::softmax_kl {
namespace {

using cuda::kLanes;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kLanes;
constexpr int kMaxLevels = 8;           // per launch
constexpr int64_t kLongRow = 1024;      // entries from which on a row gets a block
constexpr int64_t kWantedBlocks = 264;  // two for each multiprocessor of an H200

// How a block works on a level.
enum class Shape { warp_a_row, block_a_row, tile };

struct Part {
  Level level;
  Shape shape;
  bool eights;     // adjacent numbers are read eight at a time
  int rows;        // per block
  int64_t groups;  // blocks per sample
  int64_t begin;   // first block
  int64_t blocks;
};

struct Launch {
  Part part[kMaxLevels];
  int levels, first_level;
  const void *totals, *upstream;
  double factor, temperature;
};

template <typename A>
__device__ double scale_of(const Launch& p, int l) {
  const Level& level = p.part[l].level;
  const double counted = p.totals ? static_cast<double>(static_cast<const A*>(p.totals)[p.first_level + l])
                                  : static_cast<double>(level.batch * level.rows);
  return p.factor / (counted > 0 ? counted : 1);
}

// The rows of a block, and the factor of its gradients besides a row's weight.
template <typename A>
struct Rows {
  const Part* part;
  int64_t sample, first;
  int count;
  A inverse;  // of the temperature
  A factor;

  __device__ A weight(int64_t row) const {
    const Level& level = part->level;
    return level.weights ? static_cast<const A*>(level.weights)[sample * level.rows + row] : A(1);
  }
};

template <typename A>
__device__ Rows<A> rows_of_block(const Launch& p, int l) {
  const Part& part = p.part[l];
  const int64_t block = int64_t{blockIdx.x} - part.begin;
  Rows<A> rows;
  rows.part = &part;
  rows.sample = block / part.groups;
  rows.first = block % part.groups * part.rows;
  const int64_t left = part.level.rows - rows.first;
  rows.count = static_cast<int>(left < part.rows ? left : part.rows);
  rows.inverse = static_cast<A>(1 / p.temperature);
  const double upstream =
      p.upstream ? static_cast<double>(static_cast<const A*>(p.upstream)[p.first_level + l]) : 1;
  rows.factor = static_cast<A>(scale_of<A>(p, l) * upstream) * rows.inverse;
  return rows;
}

template <typename A, int V>
__device__ void load_both(const Level& level, int64_t sample, int64_t row, int64_t entry, A (&s)[V],
                          A (&t)[V]) {
  load(level.student.data, level.student.dtype, level.student.at(sample, row, entry), s);
  load(level.teacher.data, level.teacher.dtype, level.teacher.at(sample, row, entry), t);
}

// Entries adjacent: `threads` threads per row, a warp or the block; this is number `thread`.
template <typename A, int V, bool kBlock>
__device__ double one_row(const Rows<A>& rows, int64_t row, Statistics<A>* shared) {
  const Level& level = rows.part->level;
  const int thread = kBlock ? threadIdx.x : threadIdx.x % kLanes, threads = kBlock ? kThreads : kLanes;
  const A weight = rows.weight(row);
  const bool counts = weight != A(0);
  Statistics<A> stats;
  A s[V], t[V];
  for (int64_t k = thread * V; counts && k < level.entries; k += threads * V) {
    load_both(level, rows.sample, row, k, s, t);
#pragma unroll
    for (int j = 0; j < V; ++j) stats.add(s[j], t[j], rows.inverse);
  }
  if constexpr (kBlock)
    stats = block_merge(stats, rows.inverse, shared);
  else
    stats = lanes_merge(stats, rows.inverse);
  if (level.grad.data) {
    const Shares<A> shares(stats, counts ? rows.factor * weight : A(0), rows.inverse);
    for (int64_t k = thread * V; k < level.entries; k += threads * V) {
      if (counts) load_both(level, rows.sample, row, k, s, t);
#pragma unroll
      for (int j = 0; j < V; ++j) s[j] = counts ? shares.gradient(s[j], t[j]) : A(0);
      store(s, level.grad.dtype, level.grad.at(rows.sample, row, k), level.grad.data);
    }
  }
  return counts && thread == 0 ? static_cast<double>(weight) * static_cast<double>(stats.divergence()) : 0;
}

template <typename A, int V, bool kBlock>
__device__ double entries_adjacent(const Rows<A>& rows, Statistics<A>* shared) {
  double loss = 0;
  const int warp = threadIdx.x / kLanes;
  for (int i = kBlock ? 0 : warp; i < rows.count; i += kBlock ? 1 : kWarps)
    loss += one_row<A, V, kBlock>(rows, rows.first + i, shared);
  return loss;
}

// Rows adjacent: threads side by side take V rows each, and every such line of threads its share of the
// entries. `shared` has kThreads * V elements.
template <typename A, int V>
__device__ double rows_adjacent(const Rows<A>& rows, Statistics<A>* shared) {
  const Level& level = rows.part->level;
  const int tile = rows.part->rows, packs = tile / V, lines = kThreads / packs;
  const int row = threadIdx.x % packs * V, line = threadIdx.x / packs;
  const bool inside = row < rows.count;
  A s[V], t[V];
  {
    Statistics<A> stats[V];
    for (int64_t k = line; inside && k < level.entries; k += lines) {
      load_both(level, rows.sample, rows.first + row, k, s, t);
#pragma unroll
      for (int j = 0; j < V; ++j) stats[j].add(s[j], t[j], rows.inverse);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) shared[line * tile + row + j] = stats[j];
  }
  __syncthreads();
  double loss = 0;
  if (threadIdx.x < rows.count) {
    Statistics<A> whole = shared[threadIdx.x];
    for (int i = 1; i < lines; ++i) whole.merge(shared[i * tile + threadIdx.x], rows.inverse);
    shared[threadIdx.x] = whole;
    const A weight = rows.weight(rows.first + threadIdx.x);
    if (weight != A(0)) loss = static_cast<double>(weight) * static_cast<double>(whole.divergence());
  }
  __syncthreads();
  if (!level.grad.data || !inside) return loss;
  Shares<A> shares[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const A weight = rows.weight(rows.first + row + j);
    shares[j] = Shares<A>(shared[row + j], rows.factor * weight, rows.inverse);
  }
  for (int64_t k = line; k < level.entries; k += lines) {
    load_both(level, rows.sample, rows.first + row, k, s, t);
#pragma unroll
    for (int j = 0; j < V; ++j) s[j] = shares[j].gradient(s[j], t[j]);
    store(s, level.grad.dtype, level.grad.at(rows.sample, rows.first + row, k), level.grad.data);
  }
  return loss;
}

template <typename A, int V>
__device__ double block_loss(const Rows<A>& rows, Statistics<A>* shared) {
  if (rows.part->shape == Shape::tile) return rows_adjacent<A, V>(rows, shared);
  if (rows.part->shape == Shape::block_a_row) return entries_adjacent<A, V, true>(rows, shared);
  return entries_adjacent<A, V, false>(rows, shared);
}

// partials: the losses of all blocks.
template <typename A, int V>
__global__ void __launch_bounds__(kThreads, 2)
    rows_kernel(const __grid_constant__ Launch p, double* partials) {
  BEVKD2_SHARED_MEMORY(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  Statistics<A>* shared = reinterpret_cast<Statistics<A>*>(scratch + kLanes);
  int l = 0;
  while (l + 1 < p.levels && int64_t{blockIdx.x} >= p.part[l + 1].begin) ++l;
  const Rows<A> rows = rows_of_block<A>(p, l);
  double loss = 0;
  if constexpr (V == 8) {
    if (p.part[l].eights)
      loss = block_loss<A, 8>(rows, shared);
    else
      loss = block_loss<A, 1>(rows, shared);
  } else {
    loss = block_loss<A, 1>(rows, shared);
  }
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
  for (int64_t i = threadIdx.x; i < part.blocks; i += kThreads) loss += partials[part.begin + i];
  loss = cuda::block_sum(loss, reinterpret_cast<double*>(memory));
  if (threadIdx.x == 0)
    losses[p.first_level + blockIdx.x] = static_cast<A>(scale_of<A>(p, blockIdx.x) * loss);
}

// Rows of a tile: 64, or fewer where the level would fill too few blocks.
int tile_rows(const Level& level) {
  int rows = 64;
  while (rows > 16 && level.batch * ((level.rows + rows - 1) / rows) < kWantedBlocks) rows /= 2;
  return rows;
}

Part make_part(const Level& level, int64_t begin) {
  Part part{};
  part.level = level;
  const int last = level.rows_adjacent ? 1 : 2;
  const int64_t adjacent = level.rows_adjacent ? level.rows : level.entries;
  part.eights = in_eights(level.student, last, adjacent) && in_eights(level.teacher, last, adjacent) &&
                in_eights(level.grad, last, adjacent);
  if (level.rows_adjacent) {
    part.shape = Shape::tile;
    part.rows = tile_rows(level);
  } else {
    part.shape = level.entries < kLongRow ? Shape::warp_a_row : Shape::block_a_row;
    part.rows = part.shape == Shape::warp_a_row ? kWarps : 1;
  }
  part.begin = begin;
  part.groups = level.entries == 0 ? 0 : (level.rows + part.rows - 1) / part.rows;
  part.blocks = level.batch * part.groups;
  return part;
}

struct Cuda {
  template <typename A>
  static void run_levels(const Problem& p, const Tensor& losses, size_t first) {
    const cuda::OnDevice device(losses);
    Launch launch{};
    launch.levels = static_cast<int>(std::min<size_t>(kMaxLevels, p.levels.size() - first));
    launch.first_level = static_cast<int>(first);
    launch.totals = p.totals;
    launch.upstream = p.upstream;
    launch.factor = p.factor;
    launch.temperature = p.temperature;
    int64_t blocks = 0;
    for (int l = 0; l < launch.levels; ++l) {
      launch.part[l] = make_part(p.levels[first + l], blocks);
      blocks += launch.part[l].blocks;
    }
    Tensor partials = torch::stable::new_empty(losses, {blocks}, ScalarType::Double);
    double* sums = static_cast<double*>(partials.mutable_data_ptr());
    constexpr int kEach = std::is_same_v<A, float> ? 8 : 1;
    const size_t shared = kLanes * sizeof(double) + kThreads * kEach * sizeof(Statistics<A>);
    cuda::launch(rows_kernel<A, kEach>, cuda::blocks_for(blocks, 1), kThreads, shared, device.stream, launch,
                 sums);
    cuda::launch(finish_kernel<A>, launch.levels, kThreads, kLanes * sizeof(double), device.stream, launch,
                 sums, static_cast<A*>(losses.mutable_data_ptr()));
  }

  static void run(const Problem& p, Tensor& losses) {
    for (size_t first = 0; first < p.levels.size(); first += kMaxLevels)
      dispatch_accumulate(p.dtype, [&](auto zero) { run_levels<decltype(zero)>(p, losses, first); });
  }
};

}  // namespace
}  // namespace bevkd2::distill::softmax_kl

BEVKD2_CUDA_LIBRARY(m) {
  using namespace bevkd2::distill::softmax_kl;
  Ops<Cuda>::register_all(m);
}
