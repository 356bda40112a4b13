// The weighted squared distance on CUDA. All levels are one launch, with one block per chunk, and each thread
// takes eight entries at a time; then one block per level adds the chunks in their order. The host never
// waits for the device.
#include <algorithm>
#include <cmath>

#include "device_io.cuh"
#include "weighted_l2.h"

namespace bevkd2::distill::weighted_l2 {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 8192;  // entries per block: four packs per thread
constexpr int kPack = 8;
constexpr int kMaxLevels = 32;  // per launch: 3.3 of the 4 KB that a kernel's parameters may have

struct Table {
  Level level[kMaxLevels];
};

// The chunk of a block as one contiguous run of entries.
struct Run {
  int64_t begin, end;  // entries of the level
  int64_t origin;      // entry where the chunk's first row begins
  int row_length;      // 0: a single row
};

__device__ Run run_of(const Level& level, const Chunk& chunk) {
  const int64_t origin = (chunk.sample * level.rows + chunk.row_begin) * level.length;
  if (chunk.row_end - chunk.row_begin == 1) return {origin + chunk.begin, origin + chunk.end, origin, 0};
  const int64_t end = origin + (chunk.row_end - chunk.row_begin) * level.length;
  return {origin, end, origin, static_cast<int>(level.length)};
}

// Weights of the entries of one chunk.
template <typename A>
struct Weights {
  const A* rows;     // of the chunk's first row on; null: 1
  const A* columns;  // null: 1

  __device__ void locate(const Run& run, int64_t entry, int64_t& row, int64_t& column) const {
    column = entry - run.origin;
    row = 0;
    if (run.row_length > 0) {  // a chunk of several rows is short
      row = static_cast<unsigned>(column) / static_cast<unsigned>(run.row_length);
      column -= row * run.row_length;
    }
  }

  __device__ A at(const Run& run, int64_t entry) const {
    int64_t row, column;
    locate(run, entry, row, column);
    return (rows ? rows[row] : A(1)) * (columns ? columns[column] : A(1));
  }

  // Of eight entries from `entry` on, with one division for all. Returns false where all weights are 0.
  __device__ bool of_pack(const Run& run, int64_t entry, A (&weight)[kPack]) const {
    int64_t row, column;
    locate(run, entry, row, column);
    bool any = false;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      weight[i] = (rows ? rows[row] : A(1)) * (columns ? columns[column] : A(1));
      any = any || weight[i] != A(0);
      if (++column == run.row_length) {
        column = 0;
        ++row;
      }
    }
    return any;
  }
};

// One entry: adds weight * d^2 to the sum, returns weight * d. Entries with weight 0 are
// ignored, even if NaN.
template <typename A>
__device__ __forceinline__ A add_entry(A student, A teacher, A weight, A& sum) {
  const A d = weight > A(0) ? student - teacher : A(0);
  const A weighted = weight * d;
  sum += weighted * d;
  return weighted;
}

template <typename S, typename T, typename A>
__device__ void add_pack(const Level& level, const Run& run, const Weights<A>& weights, A factor,
                         int64_t entry, A& sum) {
  A weight[kPack], student[kPack] = {}, teacher[kPack] = {};
  if (weights.of_pack(run, entry, weight)) {
    load_typed(static_cast<const S*>(level.student) + entry, student);
    load_typed(static_cast<const T*>(level.teacher) + entry, teacher);
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) student[i] = factor * add_entry(student[i], teacher[i], weight[i], sum);
  if (level.grad) store_typed(student, static_cast<S*>(level.grad) + entry);
}

template <typename S, typename T, typename A>
__device__ void add_single(const Level& level, const Run& run, const Weights<A>& weights, A factor,
                           int64_t entry, A& sum) {
  const A student = static_cast<A>(static_cast<const S*>(level.student)[entry]);
  const A teacher = static_cast<A>(static_cast<const T*>(level.teacher)[entry]);
  const A weighted = add_entry(student, teacher, weights.at(run, entry), sum);
  if (level.grad) static_cast<S*>(level.grad)[entry] = static_cast<S>(factor * weighted);
}

// `first` is the number of the launch's first chunk; scale (levels, samples) of its levels. partial may be
// null.
template <typename S, typename T>
__global__ void __launch_bounds__(kThreads)
    chunk_kernel(const __grid_constant__ Table table, int levels, int64_t samples,
                 const accumulate_t<S, T>* scale, int64_t first, bool aligned, accumulate_t<S, T>* partial) {
  using A = accumulate_t<S, T>;
  BEVKD2_SHARED_MEMORY(memory);
  const int64_t number = first + blockIdx.x;
  int l = 0;
  while (l + 1 < levels && number >= table.level[l + 1].first) ++l;
  const Level& level = table.level[l];
  const Chunk chunk = chunk_of(level, number);
  const Run run = run_of(level, chunk);
  const A* rows = static_cast<const A*>(level.row_weights);
  const A* columns = static_cast<const A*>(level.column_weights);
  const Weights<A> weights{rows ? rows + chunk.sample * level.row_stride + chunk.row_begin : nullptr,
                           columns ? columns + chunk.sample * level.column_stride : nullptr};
  const A factor = 2 * scale[l * samples + chunk.sample];
  A sum = 0;
  const int64_t last = (run.end + kPack - 1) / kPack;
  for (int64_t pack = run.begin / kPack + threadIdx.x; pack < last; pack += kThreads) {
    const int64_t entry = pack * kPack;
    if (aligned && entry >= run.begin && entry + kPack <= run.end) {
      add_pack<S, T>(level, run, weights, factor, entry, sum);
      continue;
    }
    const int64_t begin = entry > run.begin ? entry : run.begin;
    const int64_t end = entry + kPack < run.end ? entry + kPack : run.end;
    for (int64_t i = begin; i < end; ++i) add_single<S, T>(level, run, weights, factor, i, sum);
  }
  if (!partial) return;
  sum = cuda::block_sum(sum, reinterpret_cast<A*>(memory));
  if (threadIdx.x == 0) partial[number] = sum;
}

// One block per level: sums (levels, samples) and loss (levels) of its chunks.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ Table table, int64_t samples, const A* scale, bool norm,
                  const A* partial, A* loss, A* sums) {
  BEVKD2_SHARED_MEMORY(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  const Level& level = table.level[blockIdx.x];
  const int64_t row = int64_t{blockIdx.x} * samples;
  double total = 0;
  for (int64_t b = 0; b < samples; ++b) {
    double sum = 0;
    for (int64_t c = threadIdx.x; c < level.chunks; c += kThreads)
      sum += static_cast<double>(partial[level.first + b * level.chunks + c]);
    sum = cuda::block_sum(sum, scratch);
    total += static_cast<double>(scale[row + b]) * (norm ? sqrt(sum) : sum);
    if (threadIdx.x == 0) sums[row + b] = static_cast<A>(sum);
  }
  if (threadIdx.x == 0) loss[blockIdx.x] = static_cast<A>(total);
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

struct Cuda {
  template <typename S, typename T, typename A = accumulate_t<S, T>>
  static void run(const Problem<A>& p, const Tensor& like) {
    const cuda::OnDevice device(like);
    std::vector<Level> levels = p.levels;
    int64_t chunks = 0;
    bool aligned = true;
    for (Level& level : levels) {
      chunks = plan_chunks(level, p.samples, kChunk, chunks);
      aligned = aligned && is_aligned(level.student) && is_aligned(level.teacher) && is_aligned(level.grad);
    }
    Tensor memory = torch::stable::new_empty(like, {p.loss ? chunks : 0});
    A* partials = p.loss ? static_cast<A*>(memory.mutable_data_ptr()) : nullptr;
    for (size_t begin = 0; begin < levels.size(); begin += kMaxLevels) {
      const size_t end = std::min(levels.size(), begin + kMaxLevels);
      Table table{};
      std::copy(levels.begin() + begin, levels.begin() + end, table.level);
      const int64_t first = levels[begin].first;
      const int64_t after = end < levels.size() ? levels[end].first : chunks;
      const int64_t row = static_cast<int64_t>(begin) * p.samples;
      const int count = static_cast<int>(end - begin);
      cuda::launch(chunk_kernel<S, T>, cuda::blocks_for(after - first, 1), kThreads, 32 * sizeof(A),
                   device.stream, table, count, p.samples, p.scale + row, first, aligned, partials);
      if (p.loss)
        cuda::launch(finish_kernel<A>, count, kThreads, 32 * sizeof(double), device.stream, table, p.samples,
                     p.scale + row, p.norm, static_cast<const A*>(partials), p.loss + begin, p.sums + row);
    }
  }
};

}  // namespace
}  // namespace bevkd2::distill::weighted_l2

BEVKD2_CUDA_LIBRARY(m) {
  using namespace bevkd2::distill::weighted_l2;
  Ops<Cuda>::register_all(m);
}
