// Overlaps of all pairs of boxes on the CPU, in float64. Nothing here has a gradient.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>

#include "checks.h"
#include "kernels.h"

namespace bevkd2::box3d {
namespace {

using torch::stable::Tensor;

// Tiles of columns that are worth a thread, at a few nanoseconds a pair.
constexpr int64_t kGrain = 32;

template <typename Read>
Footprints read(const Tensor& boxes, Read read_row) {
  const double* rows = static_cast<const double*>(boxes.const_data_ptr());
  const int64_t columns = boxes.size(1);
  Footprints footprints(boxes.size(0));
  for (int64_t i = 0; i < footprints.size(); ++i) footprints.set(i, read_row(rows + i * columns));
  return footprints;
}

// (N, M); read_row makes a footprint of a row of so many numbers.
template <typename Read>
Tensor pairwise(Overlap overlap, const Tensor& a, const Tensor& b, int64_t numbers, Read read_row) {
  const Tensor first = checked_boxes(a, numbers), second = checked_boxes(b, numbers);
  check_device(second, first);
  const Footprints rows = read(first, read_row), columns = read(second, read_row);
  const int64_t n = rows.size(), m = columns.size(), tiles = (m + kTile - 1) / kTile;
  Tensor out = torch::stable::new_empty(first, {n, m});
  double* result = static_cast<double*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, n * tiles, kGrain, [&](int64_t first_tile, int64_t last_tile) {
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
      const int64_t i = tile / tiles, begin = tile % tiles * kTile, end = std::min(begin + kTile, m);
      kernels().overlaps(overlap, rows.at(i), columns, begin, end, result + i * m);
    }
  });
  return out;
}

Tensor intersections(const Tensor& a, const Tensor& b) {
  return pairwise(Overlap::kArea, a, b, kPlanarColumns, planar);
}

Tensor ious(const Tensor& a, const Tensor& b) {
  return pairwise(Overlap::kIou, a, b, kPlanarColumns, planar);
}

Tensor ious_3d(const Tensor& a, const Tensor& b) {
  return pairwise(Overlap::kVolumeIou, a, b, kUprightColumns, upright);
}

}  // namespace
}  // namespace bevkd2::box3d

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  m.impl("rotated_intersection", TORCH_BOX(&bevkd2::box3d::intersections));
  m.impl("rotated_iou", TORCH_BOX(&bevkd2::box3d::ious));
  m.impl("box3d_iou", TORCH_BOX(&bevkd2::box3d::ious_3d));
}
