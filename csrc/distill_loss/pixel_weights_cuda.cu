// Pixel weights on CUDA: one thread per cell, with the boxes of its sample prepared in shared memory; then
// one block per level and sample adds the weights and normalises backgrounds. The host never waits for the
// device.
#include <algorithm>

#include "../core/cuda.cuh"
#include "pixel_weights.h"

namespace bevkd2::distill::pixel_weights {
namespace {

constexpr int kThreads = 256;
constexpr int kBoxes = 64;  // prepared at a time
constexpr int kMaxLevels = 32, kMaxMasks = 8;

struct Table {
  Level level[kMaxLevels];
  Mask mask[kMaxMasks];
  int levels, masks;
  int64_t batch, cells;
  const float* image_sizes;
  bool has_perspective;
  PerspectiveGaussian perspective;
  float *maps, *sums, *content;
  float* counts;  // (levels * batch, masks, blocks of a level): content cells in no box
};

__device__ bool is_content(const Table& t, const Grid& g, int64_t sample, int row, int column) {
  if (!t.image_sizes) return true;
  const float* size = t.image_sizes + 2 * sample;
  return static_cast<float>(row) * g.step_y < size[0] && static_cast<float>(column) * g.step_x < size[1];
}

__device__ float geometry_value(const Table& t, const Grid& g, int64_t sample, int row, int column) {
  if (!t.has_perspective) return 1.0F;
  const float* size = t.image_sizes + 2 * sample;
  const PerspectiveGaussian& p = t.perspective;
  return p.amplitude * perspective_factor(row, g.step_y, size[0], p.center_y, p.sigma_y) *
         perspective_factor(column, g.step_x, size[1], p.center_x, p.sigma_x);
}

// A mask's value of this thread's cell. All threads of the block call.
__device__ float mask_value(const Mask& mask, const Grid& g, int64_t sample, int row, int column,
                            DrawnBox* boxes) {
  float value = empty_value(mask.kind);
  const int64_t first = mask.splits[sample], end = mask.splits[sample + 1];
  if (first < 0 || first > end || end > mask.count)
    cuda::fail("draw_weights: splits must ascend from 0 to the number of boxes");
  for (int64_t begin = first; begin < end; begin += kBoxes) {
    const int count = static_cast<int>(end - begin < kBoxes ? end - begin : kBoxes);
    __syncthreads();  // the last boxes may still be read
    if (threadIdx.x < count)
      boxes[threadIdx.x] = make_box(mask.boxes + 5 * (begin + threadIdx.x), mask.kind, mask.parameter, g);
    __syncthreads();
    for (int n = 0; n < count; ++n)
      value = combine(mask.kind, value, box_value(boxes[n], mask.kind, g, row, column));
  }
  return value;
}

// blockIdx.y is level * batch + sample; the blocks of x go over its cells.
__global__ void __launch_bounds__(kThreads) draw_kernel(const __grid_constant__ Table t) {
  BEVKD2_SHARED_MEMORY(memory);
  float* scratch = reinterpret_cast<float*>(memory);
  DrawnBox* boxes = reinterpret_cast<DrawnBox*>(scratch + 32);
  const Level& level = t.level[blockIdx.y / t.batch];
  const Grid& g = level.grid;
  const int64_t sample = blockIdx.y % t.batch;
  const int cells = g.rows * g.columns;
  const int cell = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const bool inside = cell < cells;
  const int row = inside ? cell / g.columns : 0, column = inside ? cell % g.columns : 0;
  const bool content = inside && is_content(t, g, sample, row, column);
  float value = content ? geometry_value(t, g, sample, row, column) : 0.0F;
  for (int m = 0; m < t.masks; ++m) {
    const float drawn = mask_value(t.mask[m], g, sample, row, column, boxes);
    value *= drawn;
    if (t.mask[m].kind != MaskKind::kBackgroundByCount) continue;
    const float count = cuda::block_sum(content && drawn > 0 ? 1.0F : 0.0F, scratch);
    if (threadIdx.x == 0) t.counts[(int64_t{blockIdx.y} * t.masks + m) * gridDim.x + blockIdx.x] = count;
  }
  if (inside) t.maps[sample * t.cells + level.first + cell] = value;
}

// One block per level and sample; `blocks` is how many drew it.
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Table t, int64_t blocks) {
  BEVKD2_SHARED_MEMORY(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  const Level& level = t.level[blockIdx.x / t.batch];
  const Grid& g = level.grid;
  const int64_t sample = blockIdx.x % t.batch;
  float factor = 1.0F;
  bool scaled = false;
  for (int m = 0; m < t.masks; ++m) {
    if (t.mask[m].kind != MaskKind::kBackgroundByCount) continue;
    const float* counts = t.counts + (int64_t{blockIdx.x} * t.masks + m) * blocks;
    double count = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += kThreads) count += counts[i];
    count = cuda::block_sum(count, scratch);
    factor *= 1.0F / static_cast<float>(count > 1 ? count : 1);
    scaled = true;
  }
  float* map = t.maps + sample * t.cells + level.first;
  double sum = 0, content = 0;
  for (int cell = static_cast<int>(threadIdx.x); cell < g.rows * g.columns; cell += kThreads) {
    const float value = map[cell] * factor;
    if (scaled) map[cell] = value;
    sum += value;
    content += is_content(t, g, sample, cell / g.columns, cell % g.columns) ? 1.0 : 0.0;
  }
  sum = cuda::block_sum(sum, scratch);
  content = cuda::block_sum(content, scratch);
  if (threadIdx.x == 0) {
    t.sums[blockIdx.x] = static_cast<float>(sum);
    t.content[blockIdx.x] = static_cast<float>(content);
  }
}

Table make_table(const Problem& p) {
  STD_TORCH_CHECK(p.levels.size() <= kMaxLevels && p.masks.size() <= kMaxMasks,
                  "draw_weights: ", p.levels.size(), " levels and ", p.masks.size(),
                  " masks; CUDA draws up to ", kMaxLevels, " and ", kMaxMasks, " in one call");
  Table t{};
  for (size_t l = 0; l < p.levels.size(); ++l) t.level[l] = p.levels[l];
  for (size_t m = 0; m < p.masks.size(); ++m) t.mask[m] = p.masks[m];
  t.levels = static_cast<int>(p.levels.size());
  t.masks = static_cast<int>(p.masks.size());
  t.batch = p.batch;
  t.cells = p.cells;
  t.image_sizes = p.image_sizes;
  t.has_perspective = p.has_perspective;
  t.perspective = p.perspective;
  t.maps = p.maps;
  t.sums = p.sums;
  t.content = p.content;
  return t;
}

struct Cuda {
  static void run(const Problem& p, const Tensor& like) {
    const cuda::OnDevice device(like);
    Table t = make_table(p);
    int64_t largest = 0;
    for (const Level& level : p.levels)
      largest = std::max(largest, int64_t{level.grid.rows} * level.grid.columns);
    const unsigned blocks = cuda::blocks_for(largest, kThreads),
                   parts = cuda::blocks_for(t.levels * p.batch, 1);
    STD_TORCH_CHECK(parts <= 65535, "draw_weights: ", parts, " levels of samples; CUDA draws up to 65535");
    const Tensor counts =
        torch::stable::new_empty(like, {int64_t{parts} * t.masks * blocks}, ScalarType::Float);
    t.counts = static_cast<float*>(counts.mutable_data_ptr());
    cuda::launch(draw_kernel, dim3(blocks, parts), kThreads, 32 * sizeof(float) + kBoxes * sizeof(DrawnBox),
                 device.stream, t);
    cuda::launch(finish_kernel, parts, kThreads, 32 * sizeof(double), device.stream, t, int64_t{blocks});
  }
};

}  // namespace
}  // namespace bevkd2::distill::pixel_weights

BEVKD2_CUDA_LIBRARY(m) {
  using namespace bevkd2::distill::pixel_weights;
  Ops<Cuda>::register_all(m);
}
