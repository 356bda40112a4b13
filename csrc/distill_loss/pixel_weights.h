// Pixel weights: what the CPU and CUDA kernels share, and the op in terms of one function that a device
// supplies (Backend::run). The maths is in pixel_weights_math.h.
#pragma once

#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <tuple>

#include "../core/dispatch.h"
#include "pixel_weights_math.h"

namespace bevkd2::distill::pixel_weights {

using Ints = std::vector<int64_t>;
using Doubles = std::vector<double>;

struct Mask {
  const float* boxes;     // (N, 5)
  const int64_t* splits;  // (B + 1)
  int64_t count;          // N
  MaskKind kind;
  float parameter;
};

struct Level {
  Grid grid;
  int64_t first;  // number of its first cell in a sample
};

// maps is (B, cells), sums and content (L, B): the sum of a level's weights, and its cells in the image.
struct Problem {
  std::vector<Level> levels;
  std::vector<Mask> masks;
  int64_t batch, cells;
  const float* image_sizes;  // (B, 2) height, width; null: everything is content
  bool has_perspective;
  PerspectiveGaussian perspective;
  float *maps, *sums, *content;
};

inline std::vector<Level> make_levels(const Ints& shapes, const Doubles& geometry) {
  STD_TORCH_CHECK(shapes.size() % 2 == 0 && geometry.size() == 2 * shapes.size() && !shapes.empty(),
                  "draw_weights: shapes must hold h, w and geometry left, top, step_x, step_y of each level");
  std::vector<Level> levels;
  int64_t first = 0;
  for (size_t l = 0; 2 * l < shapes.size(); ++l) {
    const int64_t rows = shapes[2 * l], columns = shapes[2 * l + 1];
    STD_TORCH_CHECK(rows >= 0 && columns >= 0 && rows * columns <= std::numeric_limits<int32_t>::max(),
                    "draw_weights: level ", l, " is ", rows, " x ", columns);
    const double* g = &geometry[4 * l];
    levels.push_back({{static_cast<float>(g[0]), static_cast<float>(g[1]), static_cast<float>(g[2]),
                       static_cast<float>(g[3]), static_cast<int>(rows), static_cast<int>(columns)},
                      first});
    first += rows * columns;
  }
  return levels;
}

inline std::vector<Mask> make_masks(const Tensors& boxes, const Tensors& splits, const Ints& kinds,
                                    const Doubles& parameters, int64_t batch) {
  STD_TORCH_CHECK(
      splits.size() == boxes.size() && kinds.size() == boxes.size() && parameters.size() == boxes.size(),
      "draw_weights: boxes, splits, kinds and parameters must have one entry per mask");
  std::vector<Mask> masks;
  for (size_t m = 0; m < boxes.size(); ++m) {
    const Tensor &b = boxes[m], &s = splits[m];
    STD_TORCH_CHECK(
        b.dim() == 2 && b.size(1) == 5 && b.is_contiguous() && b.scalar_type() == ScalarType::Float,
        "draw_weights: boxes must be contiguous float32 (N, 5)");
    STD_TORCH_CHECK(
        s.dim() == 1 && s.size(0) == batch + 1 && s.is_contiguous() && s.scalar_type() == ScalarType::Long,
        "draw_weights: splits must be contiguous int64 (B + 1)");
    STD_TORCH_CHECK(kinds[m] >= 0 && kinds[m] <= 5, "draw_weights: no mask of kind ", kinds[m]);
    masks.push_back({static_cast<const float*>(b.const_data_ptr()),
                     static_cast<const int64_t*>(s.const_data_ptr()), b.size(0),
                     static_cast<MaskKind>(kinds[m]), static_cast<float>(parameters[m])});
  }
  return masks;
}

inline PerspectiveGaussian make_perspective(const Doubles& p) {
  STD_TORCH_CHECK(p.empty() || p.size() == 5,
                  "draw_weights: perspective must be amplitude, sigma_x, sigma_y, center_x, center_y");
  if (p.empty()) return {};
  return {static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
          static_cast<float>(p[3]), static_cast<float>(p[4])};
}

// A device supplies run(problem, a tensor of its device).
template <typename Backend>
struct Ops {
  static std::tuple<Tensor, Tensor, Tensor> forward(std::optional<Tensor> image_sizes, int64_t batch,
                                                    Ints shapes, Doubles geometry, Doubles perspective,
                                                    Tensors boxes, Tensors splits, Ints kinds,
                                                    Doubles parameters) {
    STD_TORCH_CHECK(image_sizes.has_value() || !boxes.empty(), "draw_weights: no image_sizes and no boxes");
    STD_TORCH_CHECK(perspective.empty() || image_sizes.has_value(), "draw_weights: perspective needs sizes");
    if (image_sizes)
      STD_TORCH_CHECK(image_sizes->dim() == 2 && image_sizes->size(0) == batch && image_sizes->size(1) == 2 &&
                          image_sizes->is_contiguous() && image_sizes->scalar_type() == ScalarType::Float,
                      "draw_weights: image_sizes must be contiguous float32 (B, 2)");
    Problem p{};
    p.levels = make_levels(shapes, geometry);
    p.masks = make_masks(boxes, splits, kinds, parameters, batch);
    p.batch = batch;
    p.cells = p.levels.back().first + int64_t{p.levels.back().grid.rows} * p.levels.back().grid.columns;
    p.image_sizes = image_sizes ? static_cast<const float*>(image_sizes->const_data_ptr()) : nullptr;
    p.has_perspective = !perspective.empty();
    p.perspective = make_perspective(perspective);
    const Tensor& like = image_sizes ? *image_sizes : boxes[0];
    const int64_t levels = static_cast<int64_t>(p.levels.size());
    Tensor maps = torch::stable::new_empty(like, {batch, p.cells});
    Tensor sums = torch::stable::new_empty(like, {levels, batch});
    Tensor content = torch::stable::new_empty(like, {levels, batch});
    p.maps = static_cast<float*>(maps.mutable_data_ptr());
    p.sums = static_cast<float*>(sums.mutable_data_ptr());
    p.content = static_cast<float*>(content.mutable_data_ptr());
    Backend::run(p, like);
    return {maps, sums, content};
  }

  template <typename Library>
  static void register_all(Library& m) {
    m.impl("draw_weights", TORCH_BOX(&forward));
  }
};

}  // namespace bevkd2::distill::pixel_weights
