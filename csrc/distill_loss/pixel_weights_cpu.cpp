// Pixel weights on the CPU. A task is one level of one sample, and draws one mask after another.
#include "pixel_weights.h"

#include <algorithm>

#include "../core/parallel.h"

namespace bevkd2::distill::pixel_weights {
namespace {

// Cells of a grid, from the first one, that lie in an image of that size: their first pixel does.
int content_cells(float step, float size, int cells) {
  int n = 0;
  while (n < cells && static_cast<float>(n) * step < size) ++n;
  return n;
}

struct LevelPart {
  const Grid& grid;
  int rows, columns;  // of the content
  float* map;         // the level's cells of the sample
};

void draw_geometry(const Problem& p, const LevelPart& part, const float* size) {
  const Grid& g = part.grid;
  std::vector<float> across(g.columns, 1.0F);
  if (p.has_perspective)
    for (int c = 0; c < g.columns; ++c)
      across[c] = perspective_factor(c, g.step_x, size[1], p.perspective.center_x, p.perspective.sigma_x);
  for (int r = 0; r < g.rows; ++r) {
    float* row = part.map + int64_t{r} * g.columns;
    const float down =
        p.has_perspective
            ? p.perspective.amplitude *
                  perspective_factor(r, g.step_y, size[0], p.perspective.center_y, p.perspective.sigma_y)
            : 1.0F;
    const int inside = r < part.rows ? part.columns : 0;
    for (int c = 0; c < inside; ++c) row[c] = down * across[c];
    std::fill(row + inside, row + g.columns, 0.0F);
  }
}

void draw_boxes(const Mask& mask, int64_t sample, const Grid& g, std::vector<float>& plane) {
  std::fill(plane.begin(), plane.end(), empty_value(mask.kind));
  for (int64_t n = mask.splits[sample]; n < mask.splits[sample + 1]; ++n) {
    const DrawnBox box = make_box(mask.boxes + 5 * n, mask.kind, mask.parameter, g);
    const CellRange range = reach(box, g);
    for (int r = range.row_begin; r < range.row_end; ++r)
      for (int c = range.column_begin; c < range.column_end; ++c) {
        float& cell = plane[int64_t{r} * g.columns + c];
        cell = combine(mask.kind, cell, box_value(box, mask.kind, g, r, c));
      }
  }
}

// One over the number of content cells that no box covers.
float inverse_count(const LevelPart& part, const std::vector<float>& plane) {
  int64_t count = 0;
  for (int r = 0; r < part.rows; ++r)
    for (int c = 0; c < part.columns; ++c) count += plane[int64_t{r} * part.grid.columns + c] > 0;
  return 1.0F / static_cast<float>(std::max<int64_t>(1, count));
}

void draw_level(const Problem& p, int64_t l, int64_t sample) {
  const Level& level = p.levels[l];
  const Grid& g = level.grid;
  const int64_t cells = int64_t{g.rows} * g.columns;
  const float* size = p.image_sizes ? p.image_sizes + 2 * sample : nullptr;
  const LevelPart part{g, size ? content_cells(g.step_y, size[0], g.rows) : g.rows,
                       size ? content_cells(g.step_x, size[1], g.columns) : g.columns,
                       p.maps + sample * p.cells + level.first};
  draw_geometry(p, part, size);
  std::vector<float> plane(p.masks.empty() ? 0 : cells);
  for (const Mask& mask : p.masks) {
    draw_boxes(mask, sample, g, plane);
    const float factor = mask.kind == MaskKind::kBackgroundByCount ? inverse_count(part, plane) : 1.0F;
    for (int64_t i = 0; i < cells; ++i) part.map[i] *= plane[i] * factor;
  }
  double sum = 0;
  for (int64_t i = 0; i < cells; ++i) sum += part.map[i];
  p.sums[l * p.batch + sample] = static_cast<float>(sum);
  p.content[l * p.batch + sample] = static_cast<float>(int64_t{part.rows} * part.columns);
}

void check_splits(const Problem& p) {
  for (const Mask& mask : p.masks) {
    bool good = mask.splits[0] == 0 && mask.splits[p.batch] == mask.count;
    for (int64_t b = 0; b < p.batch; ++b) good = good && mask.splits[b] <= mask.splits[b + 1];
    STD_TORCH_CHECK(good, "draw_weights: splits must ascend from 0 to the number of boxes, ", mask.count);
  }
}

struct Cpu {
  static void run(const Problem& p, const Tensor&) {
    check_splits(p);
    parallel_for(0, static_cast<int64_t>(p.levels.size()) * p.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) draw_level(p, n / p.batch, n % p.batch);
    });
  }
};

}  // namespace
}  // namespace bevkd2::distill::pixel_weights

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  using namespace bevkd2::distill::pixel_weights;
  Ops<Cpu>::register_all(m);
}
