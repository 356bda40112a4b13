// Weights of the cells of a feature level or a BEV grid, drawn from boxes and the geometry of the image, as
// pure functions that the CPU and the CUDA kernels share. bevkd2/ops/pixel_weights.py says what they mean.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/macros.h"

namespace bevkd2::distill::pixel_weights {

// How the boxes of one mask set the cells. The numbers are those of bevkd2/ops/pixel_weights.py.
enum class MaskKind : int64_t {
  kForeground = 0,         // 1 in a box
  kForegroundByArea = 1,   // 1 / the box's area in cells, the largest
  kBackground = 2,         // 1 in no box
  kBackgroundByCount = 3,  // 1 / the number of such cells
  kGaussian = 4,           // a Gaussian about each box's centre, the largest
  kOcclusion = 5,          // min(1, depth / parameter) in a box, the smallest
};

// A level: the centre of cell (row, column) is at x = left + (column + 0.5) * step_x, and y likewise.
struct Grid {
  float left, top, step_x, step_y;
  int rows, columns;
};

// A box prepared for its cells: (u, v) are coordinates along its length and width, from its centre.
struct DrawnBox {
  float x, y, cosine, sine;
  float half_length, half_width;
  float center_row, center_column;  // the cell that holds the centre
  float inverse_u, inverse_v;       // 1 / sigma of the Gaussian
  float value;                      // of a cell inside
};

struct CellRange {
  int row_begin, row_end, column_begin, column_end;
};

BEVKD2_HOST_DEVICE float center_x(const Grid& g, int column) { return g.left + (column + 0.5F) * g.step_x; }
BEVKD2_HOST_DEVICE float center_y(const Grid& g, int row) { return g.top + (row + 0.5F) * g.step_y; }

// The value before any box is drawn.
BEVKD2_HOST_DEVICE float empty_value(MaskKind kind) {
  const bool one =
      kind == MaskKind::kBackground || kind == MaskKind::kBackgroundByCount || kind == MaskKind::kOcclusion;
  return one ? 1.0F : 0.0F;
}

// The larger of two values; for masks whose empty value is 1, the smaller.
BEVKD2_HOST_DEVICE float combine(MaskKind kind, float a, float b) {
  return empty_value(kind) > 0 ? (b < a ? b : a) : (b > a ? b : a);
}

// box: x, y, length, width, angle; of an occlusion x1, y1, x2, y2, depth. `parameter` is alpha of the
// Gaussian or the depth below which an object hides something.
BEVKD2_HOST_DEVICE DrawnBox make_box(const float* box, MaskKind kind, float parameter, const Grid& g) {
  DrawnBox d{};
  float length = box[2], width = box[3];
  d.x = box[0];
  d.y = box[1];
  d.cosine = 1.0F;
  if (kind == MaskKind::kOcclusion) {
    d.x = 0.5F * (box[0] + box[2]);
    d.y = 0.5F * (box[1] + box[3]);
    length = box[2] - box[0];
    width = box[3] - box[1];
    d.value = box[4] < parameter ? box[4] / parameter : 1.0F;
  } else {
    d.cosine = std::cos(box[4]);
    d.sine = std::sin(box[4]);
    const float cells = length * width / (g.step_x * g.step_y);
    d.value =
        kind == MaskKind::kForegroundByArea ? 1.0F / (cells > 1.0F ? cells : 1.0F) : 1.0F - empty_value(kind);
  }
  d.half_length = 0.5F * length;
  d.half_width = 0.5F * width;
  d.center_column = std::floor((d.x - g.left) / g.step_x);
  d.center_row = std::floor((d.y - g.top) / g.step_y);
  if (kind == MaskKind::kGaussian) {
    const float cell = std::sqrt(g.step_x * g.step_y);
    d.inverse_u = 6.0F / (parameter * (length > cell ? length : cell));
    d.inverse_v = 6.0F / (parameter * (width > cell ? width : cell));
    d.x = g.left + (d.center_column + 0.5F) * g.step_x;
    d.y = g.top + (d.center_row + 0.5F) * g.step_y;
    d.half_length = 3.0F / d.inverse_u;
    d.half_width = 3.0F / d.inverse_v;
  }
  return d;
}

// The value of a cell for one box; empty_value outside of it. A box with NaN covers no cell.
BEVKD2_HOST_DEVICE float box_value(const DrawnBox& d, MaskKind kind, const Grid& g, int row, int column) {
  const float dx = center_x(g, column) - d.x, dy = center_y(g, row) - d.y;
  const float u = dx * d.cosine + dy * d.sine, v = dy * d.cosine - dx * d.sine;
  if (kind == MaskKind::kGaussian) {
    const float a = u * d.inverse_u, b = v * d.inverse_v, q = a * a + b * b;
    return q <= 9.0F ? std::exp(-0.5F * q) : 0.0F;
  }
  const bool inside = -d.half_length <= u && u < d.half_length && -d.half_width <= v && v < d.half_width;
  const bool holds_center = kind != MaskKind::kOcclusion && d.center_row == row && d.center_column == column;
  return inside || holds_center ? d.value : empty_value(kind);
}

// Limits a cell number, NaN included, to 0 .. size.
BEVKD2_HOST_DEVICE int to_cell(float position, int size) {
  if (!(position > 0.0F)) return 0;
  return position < static_cast<float>(size) ? static_cast<int>(position) : size;
}

// The cells that a box can cover, with a margin.
BEVKD2_HOST_DEVICE CellRange reach(const DrawnBox& d, const Grid& g) {
  const float c = std::fabs(d.cosine), s = std::fabs(d.sine);
  const float x = c * d.half_length + s * d.half_width, y = s * d.half_length + c * d.half_width;
  return {to_cell((d.y - y - g.top) / g.step_y - 1.0F, g.rows),
          to_cell((d.y + y - g.top) / g.step_y + 2.0F, g.rows),
          to_cell((d.x - x - g.left) / g.step_x - 1.0F, g.columns),
          to_cell((d.x + x - g.left) / g.step_x + 2.0F, g.columns)};
}

// The perspective Gaussian of depth-guided distillation, Eq. 3: amplitude * exp(-x part) * exp(-y part).
struct PerspectiveGaussian {
  float amplitude;  // 0: there is none
  float sigma_x, sigma_y, center_x, center_y;
};

// One of its two factors; `position` in cells, `size` the image's in pixels.
BEVKD2_HOST_DEVICE float perspective_factor(int position, float step, float size, float center, float sigma) {
  const float e = ((position + 0.5F) * step / size - center) / sigma;
  return std::exp(-e * e);
}

}  // namespace bevkd2::distill::pixel_weights
