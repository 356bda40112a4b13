// Means of |x|^power on CUDA. A block takes a tile: its warps take rows in turn, their lanes V columns each.
// Tiles leave their sums in memory, and one thread per mean adds them in order.
#include "absolute_means.h"
#include "device_io.cuh"

namespace bevkd2::distill::absolute_means {
namespace {

using cuda::kLanes;

constexpr int kThreads = 256, kWarps = kThreads / kLanes;
constexpr int kRows = 64;  // of a tile; its columns are kLanes * V

template <typename A>
__device__ __forceinline__ A powered(A x, bool square) {
  return square ? x * x : (x < A(0) ? -x : x);
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    sums_kernel(const Forward<T> p, const Tiling tiling, accumulate_t<T>* row_sums,
                accumulate_t<T>* column_sums) {
  using A = accumulate_t<T>;
  BEVKD2_SHARED_MEMORY(memory);
  A* parts = reinterpret_cast<A*>(memory);  // (kWarps, kLanes * V)
  const Tile tile = tiling.tile(blockIdx.x);
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const bool inside = int64_t{lane} * V < tile.columns;
  A columns[V] = {};
  for (int64_t r = warp; r < tile.rows; r += kWarps) {
    A x[V], row = 0;
    if (inside) {
      load_typed(p.features.at(tile.sample, tile.row + r, tile.column + lane * V), x);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A value = powered(x[j], p.square);
        row += value;
        columns[j] += value;
      }
    }
    row = cuda::lanes_sum(row);
    if (lane == 0) row_sums[tiling.row_sum_at(tile) + r] = row;
  }
#pragma unroll
  for (int j = 0; j < V; ++j) parts[(warp * kLanes + lane) * V + j] = columns[j];
  __syncthreads();
  for (int i = threadIdx.x; i < tile.columns; i += kThreads) {
    A sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += parts[w * kLanes * V + i];
    column_sums[tiling.column_sum_at(tile) + i] = sum;
  }
}

// `count` means of every sample.
template <typename A>
__global__ void __launch_bounds__(kThreads, 2)
    means_kernel(const A* sums, int64_t samples, int64_t tiles, int64_t count, int64_t entries, A* means) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < samples * count) means[i] = mean_of(sums, i, tiles, count, entries);
}

// What the kernel itself overwrites, so not through the read-only cache as by load_typed.
template <typename A, typename T, int V>
__device__ __forceinline__ void load_overwritten(const T* from, A (&out)[V]) {
  if constexpr (V == 1) {
    out[0] = static_cast<A>(*from);
  } else {
    constexpr int kSize = cuda::Pack<T>::kSize;
#pragma unroll
    for (int i = 0; i < V; i += kSize) {
      const cuda::Pack<T> pack = *reinterpret_cast<const cuda::Pack<T>*>(from + i);
#pragma unroll
      for (int j = 0; j < kSize; ++j) out[i + j] = static_cast<A>(pack.item[j]);
    }
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 2) gradient_kernel(const Backward<T> p, const Tiling tiling) {
  using A = accumulate_t<T>;
  const Tile tile = tiling.tile(blockIdx.x);
  const int lane = threadIdx.x % kLanes;
  if (int64_t{lane} * V >= tile.columns) return;
  const int64_t column = tile.column + lane * V;
  A of_columns[V] = {};
  if (p.column_gradients) {
    load_typed(p.column_gradients + tile.sample * p.shape.columns + column, of_columns);
#pragma unroll
    for (int j = 0; j < V; ++j) of_columns[j] /= static_cast<A>(p.shape.rows);
  }
  for (int64_t r = threadIdx.x / kLanes; r < tile.rows; r += kWarps) {
    const int64_t row = tile.row + r;
    A of_row = 0;
    if (p.row_gradients)
      of_row =
          cuda::load1(p.row_gradients + tile.sample * p.shape.rows + row) / static_cast<A>(p.shape.columns);
    A x[V], out[V] = {};
    load_typed(p.features.at(tile.sample, row, column), x);
    T* to = p.grad.at(tile.sample, row, column);
    if (p.add) load_overwritten(to, out);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A factor = of_row + of_columns[j];
      if (p.square)
        out[j] += factor * (x[j] + x[j]);
      else
        out[j] += x[j] > A(0) ? factor : (x[j] < A(0) ? -factor : A(0));
    }
    store_typed(out, to);
  }
}

// Whether rows can be read eight numbers at a time.
template <typename T>
bool in_eights(const View<T>& view, const Shape& shape) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && shape.columns % 8 == 0 &&
         view.sample_stride % 8 == 0 && view.row_stride % 8 == 0;
}

struct Cuda {
  template <typename T, int V, typename A = accumulate_t<T>>
  static void sums(const Forward<T>& p, const Tensor& like) {
    const cuda::OnDevice device(like);
    const Tiling tiling(p.shape, kRows, kLanes * V);
    const int64_t of_rows = tiling.row_sums(), of_columns = tiling.column_sums();
    Tensor partials =
        torch::stable::new_empty(like, {of_rows + of_columns}, accumulate_dtype(like.scalar_type()));
    A* row_sums = static_cast<A*>(partials.mutable_data_ptr());
    A* column_sums = row_sums + of_rows;
    cuda::launch(sums_kernel<T, V>, cuda::blocks_for(tiling.count(), 1), kThreads, kThreads * V * sizeof(A),
                 device.stream, p, tiling, row_sums, column_sums);
    const Shape& s = p.shape;
    cuda::launch(means_kernel<A>, cuda::blocks_for(s.samples * s.rows, kThreads), kThreads, 0, device.stream,
                 static_cast<const A*>(row_sums), s.samples, tiling.column_tiles, s.rows, s.columns,
                 p.row_means);
    cuda::launch(means_kernel<A>, cuda::blocks_for(s.samples * s.columns, kThreads), kThreads, 0,
                 device.stream, static_cast<const A*>(column_sums), s.samples, tiling.row_tiles, s.columns,
                 s.rows, p.column_means);
  }

  template <typename T>
  static void forward(const Forward<T>& p, const Tensor& like) {
    if constexpr (!std::is_same_v<T, double>) {
      if (in_eights(p.features, p.shape)) return sums<T, 8>(p, like);
    }
    sums<T, 1>(p, like);
  }

  template <typename T, int V>
  static void gradient(const Backward<T>& p, const Tensor& like) {
    const cuda::OnDevice device(like);
    const Tiling tiling(p.shape, kRows, kLanes * V);
    cuda::launch(gradient_kernel<T, V>, cuda::blocks_for(tiling.count(), 1), kThreads, 0, device.stream, p,
                 tiling);
  }

  template <typename T>
  static void backward(const Backward<T>& p, const Tensor& like) {
    if constexpr (!std::is_same_v<T, double>) {
      const bool gradients_in_eights = reinterpret_cast<uintptr_t>(p.column_gradients) % 16 == 0;
      if (in_eights(p.features, p.shape) && in_eights(p.grad, p.shape) && gradients_in_eights)
        return gradient<T, 8>(p, like);
    }
    gradient<T, 1>(p, like);
  }
};

}  // namespace
}  // namespace bevkd2::distill::absolute_means

BEVKD2_CUDA_LIBRARY(m) {
  using namespace bevkd2::distill::absolute_means;
  Ops<Cuda>::register_all(m);
}
