// Weighted squared distance on CUDA: all levels in one launch, a block a chunk, eight entries a thread at a
// time; then a block a level adds up the chunks in their order. Nothing waits for the device.
#include <algorithm>
#include <cmath>

#include "../core/cuda.cuh"
#include "weighted_l2.h"

namespace bevkd2::distill {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 8192;  // entries a block: four packs a thread
constexpr int kPack = 8;
constexpr int kMaxLevels = 32;  // of a launch: 3.3 of the 4 KB that a kernel's parameters may have

struct L2Table {
  L2Level level[kMaxLevels];
};

// The chunk of a block, as one run of entries; rows in it lie one behind the other.
struct L2Run {
  int64_t begin, end;  // entries of the level
  int64_t origin;      // entry where the chunk's first row begins
  int row_length;      // 0: a single row
};

__device__ L2Run run_of(const L2Level& level, const L2Chunk& chunk) {
  const int64_t origin = (chunk.sample * level.rows + chunk.row_begin) * level.length;
  if (chunk.row_end - chunk.row_begin == 1) return {origin + chunk.begin, origin + chunk.end, origin, 0};
  const int64_t end = origin + (chunk.row_end - chunk.row_begin) * level.length;
  return {origin, end, origin, static_cast<int>(level.length)};
}

// Weights of the entries of one chunk.
template <typename A>
struct L2Weights {
  const A* rows;     // of the chunk's first row on; null: 1
  const A* columns;  // null: 1

  __device__ void locate(const L2Run& run, int64_t entry, int64_t& row, int64_t& column) const {
    column = entry - run.origin;
    row = 0;
    if (run.row_length > 0) {  // a chunk of several rows is short
      row = static_cast<unsigned>(column) / static_cast<unsigned>(run.row_length);
      column -= row * run.row_length;
    }
  }

  __device__ A at(const L2Run& run, int64_t entry) const {
    int64_t row, column;
    locate(run, entry, row, column);
    return (rows ? rows[row] : A(1)) * (columns ? columns[column] : A(1));
  }

  // Of eight entries from `entry` on, one division for all. False: they all weigh nothing.
  __device__ bool of_pack(const L2Run& run, int64_t entry, A (&weight)[kPack]) const {
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

template <typename T, typename A>
__device__ __forceinline__ void load_pack(const T* from, A (&to)[kPack]) {
  constexpr int kSize = cuda::Pack<T>::kSize;
#pragma unroll
  for (int k = 0; k < kPack / kSize; ++k) {
    const cuda::Pack<T> pack = cuda::load16(from + k * kSize);
#pragma unroll
    for (int i = 0; i < kSize; ++i) to[k * kSize + i] = static_cast<A>(pack.item[i]);
  }
}

template <typename S, typename A>
__device__ __forceinline__ void store_pack(S* to, const A (&from)[kPack]) {
  constexpr int kSize = cuda::Pack<S>::kSize;
#pragma unroll
  for (int k = 0; k < kPack / kSize; ++k) {
    cuda::Pack<S> pack;
#pragma unroll
    for (int i = 0; i < kSize; ++i) pack.item[i] = static_cast<S>(from[k * kSize + i]);
    cuda::store16(to + k * kSize, pack);
  }
}

// One entry: adds weight * d^2 to the sum, returns weight * d. What weighs nothing may be NaN.
template <typename A>
__device__ __forceinline__ A l2_entry(A student, A teacher, A weight, A& sum) {
  const A d = weight > A(0) ? student - teacher : A(0);
  const A weighted = weight * d;
  sum += weighted * d;
  return weighted;
}

template <typename S, typename T, typename A>
__device__ void l2_whole_pack(const L2Level& level, const L2Run& run, const L2Weights<A>& weights, A factor,
                              int64_t entry, A& sum) {
  A weight[kPack], student[kPack] = {}, teacher[kPack] = {};
  if (weights.of_pack(run, entry, weight)) {
    load_pack(static_cast<const S*>(level.student) + entry, student);
    load_pack(static_cast<const T*>(level.teacher) + entry, teacher);
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) student[i] = factor * l2_entry(student[i], teacher[i], weight[i], sum);
  if (level.grad) store_pack(static_cast<S*>(level.grad) + entry, student);
}

template <typename S, typename T, typename A>
__device__ void l2_single(const L2Level& level, const L2Run& run, const L2Weights<A>& weights, A factor,
                          int64_t entry, A& sum) {
  const A student = static_cast<A>(static_cast<const S*>(level.student)[entry]);
  const A teacher = static_cast<A>(static_cast<const T*>(level.teacher)[entry]);
  const A weighted = l2_entry(student, teacher, weights.at(run, entry), sum);
  if (level.grad) static_cast<S*>(level.grad)[entry] = static_cast<S>(factor * weighted);
}

// `first` is the number of the launch's first chunk; scale (levels, samples) of its levels. partial may be
// null.
template <typename S, typename T>
__global__ void __launch_bounds__(kThreads)
    l2_kernel(const __grid_constant__ L2Table table, int levels, int64_t samples, const wide_t<S, T>* scale,
              int64_t first, bool aligned, wide_t<S, T>* partial) {
  using A = wide_t<S, T>;
  BEVKD2_SHARED_MEMORY(memory);
  const int64_t number = first + blockIdx.x;
  int l = 0;
  while (l + 1 < levels && number >= table.level[l + 1].first) ++l;
  const L2Level& level = table.level[l];
  const L2Chunk chunk = chunk_of(level, number);
  const L2Run run = run_of(level, chunk);
  const A* rows = static_cast<const A*>(level.row_weights);
  const A* columns = static_cast<const A*>(level.column_weights);
  const L2Weights<A> weights{rows ? rows + chunk.sample * level.row_stride + chunk.row_begin : nullptr,
                             columns ? columns + chunk.sample * level.column_stride : nullptr};
  const A factor = 2 * scale[l * samples + chunk.sample];
  A sum = 0;
  const int64_t last = (run.end + kPack - 1) / kPack;
  for (int64_t pack = run.begin / kPack + threadIdx.x; pack < last; pack += kThreads) {
    const int64_t entry = pack * kPack;
    if (aligned && entry >= run.begin && entry + kPack <= run.end) {
      l2_whole_pack<S, T>(level, run, weights, factor, entry, sum);
      continue;
    }
    const int64_t begin = entry > run.begin ? entry : run.begin;
    const int64_t end = entry + kPack < run.end ? entry + kPack : run.end;
    for (int64_t i = begin; i < end; ++i) l2_single<S, T>(level, run, weights, factor, i, sum);
  }
  if (!partial) return;
  sum = cuda::block_sum(sum, reinterpret_cast<A*>(memory));
  if (threadIdx.x == 0) partial[number] = sum;
}

// A block a level: sums (levels, samples) and loss (levels) of its chunks.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    l2_add_up_kernel(const __grid_constant__ L2Table table, int64_t samples, const A* scale, bool norm,
                     const A* partial, A* loss, A* sums) {
  BEVKD2_SHARED_MEMORY(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  const L2Level& level = table.level[blockIdx.x];
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
  static void prepare(const Tensor&) {}

  template <typename S, typename T, typename A = wide_t<S, T>>
  static void run(const L2Arguments& a, std::vector<L2Level> levels, bool norm, A* loss, A* sums) {
    const cuda::OnDevice device(a.scale);
    int64_t chunks = 0;
    bool aligned = true;
    for (L2Level& level : levels) {
      chunks = plan_chunks(level, a.samples(), kChunk, chunks);
      aligned = aligned && is_aligned(level.student) && is_aligned(level.teacher) && is_aligned(level.grad);
    }
    std::optional<Tensor> memory;
    if (loss) memory = torch::stable::new_empty(a.scale, {chunks});
    A* partial = loss ? static_cast<A*>(memory->mutable_data_ptr()) : nullptr;
    const A* scale = static_cast<const A*>(a.scale.const_data_ptr());
    for (size_t begin = 0; begin < levels.size(); begin += kMaxLevels) {
      const size_t end = std::min(levels.size(), begin + kMaxLevels);
      L2Table table{};
      std::copy(levels.begin() + begin, levels.begin() + end, table.level);
      const int64_t first = levels[begin].first;
      const int64_t after = end < levels.size() ? levels[end].first : chunks;
      const int64_t row = static_cast<int64_t>(begin) * a.samples();
      const int count = static_cast<int>(end - begin);
      cuda::launch(l2_kernel<S, T>, cuda::blocks_for(after - first, 1), kThreads, 32 * sizeof(A),
                   device.stream, table, count, a.samples(), scale + row, first, aligned, partial);
      if (loss)
        cuda::launch(l2_add_up_kernel<A>, count, kThreads, 32 * sizeof(double), device.stream, table,
                     a.samples(), scale + row, norm, static_cast<const A*>(partial), loss + begin,
                     sums + row);
    }
  }
};

using Ops = L2Ops<Cuda>;

}  // namespace
}  // namespace bevkd2::distill

BEVKD2_CUDA_LIBRARY(m) {
  m.impl("weighted_l2", TORCH_BOX(&bevkd2::distill::Ops::forward));
  m.impl("weighted_l2_backward", TORCH_BOX(&bevkd2::distill::Ops::backward));
}
