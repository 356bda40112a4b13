// Overlaps of rotated boxes and their suppression on the CPU, in float64: bevkd2/ops/box3d.py converts and
// checks. Nothing here has a gradient.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../core/rotated_box.h"

namespace bevkd2::box3d {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Rows that are worth a thread, at some 200 ns a pair.
int64_t grain_of(int64_t columns) { return std::max<int64_t>(1, 2048 / std::max<int64_t>(1, columns)); }

Tensor checked(const Tensor& boxes, int64_t columns) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == columns && boxes.scalar_type() == ScalarType::Double,
                  "box3d: boxes must be float64 (N, ", columns, ")");
  return torch::stable::contiguous(boxes);
}

struct Box3D {
  RotatedBox footprint;
  double low, high;  // z

  double volume() const { return footprint.area() * (high - low); }
};

RotatedBox planar(const double* row) { return {row[0], row[1], row[2], row[3], row[4]}; }

// x, y, z of the centre, length, width, height, yaw.
Box3D upright(const double* row) {
  return {{row[0], row[1], row[3], row[4], row[6]}, row[2] - 0.5 * row[5], row[2] + 0.5 * row[5]};
}

// (N, M) of measure(a[i], b[j]), where read makes a box of a row.
template <typename Read, typename Measure>
Tensor pairwise(const Tensor& a, const Tensor& b, int64_t columns, Read read, Measure measure) {
  const Tensor first = checked(a, columns), second = checked(b, columns);
  const int64_t n = first.size(0), m = second.size(0);
  Tensor out = torch::stable::new_empty(first, {n, m});
  const double* rows = static_cast<const double*>(first.const_data_ptr());
  const double* others = static_cast<const double*>(second.const_data_ptr());
  double* result = static_cast<double*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, n, grain_of(m), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto box = read(rows + i * columns);
      for (int64_t j = 0; j < m; ++j) result[i * m + j] = measure(box, read(others + j * columns));
    }
  });
  return out;
}

Tensor intersections(const Tensor& a, const Tensor& b) {
  return pairwise(a, b, 5, planar, intersection_area);
}

Tensor ious(const Tensor& a, const Tensor& b) { return pairwise(a, b, 5, planar, rotated_iou); }

double iou_of_volumes(const Box3D& a, const Box3D& b) {
  const double shared_height = interval_overlap(a.low, a.high, b.low, b.high);
  if (shared_height == 0) return 0;
  const double shared = shared_height * intersection_area(a.footprint, b.footprint);
  return intersection_over_union(shared, a.volume(), b.volume());
}

Tensor ious_3d(const Tensor& a, const Tensor& b) { return pairwise(a, b, 7, upright, iou_of_volumes); }

// Positions by falling score, the first of equals first.
std::vector<int64_t> by_score(const double* scores, int64_t n) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return scores[i] > scores[j]; });
  return order;
}

// Greedy suppression: a box goes where a better one of its label, itself kept, overlaps it too much.
std::vector<int64_t> survivors(const double* boxes, const int64_t* labels, std::vector<int64_t> order,
                               double threshold, bool inclusive) {
  std::vector<int64_t> kept;
  while (!order.empty()) {
    const int64_t best = order.front();
    const RotatedBox box = planar(boxes + 5 * best);
    kept.push_back(best);
    const auto suppressed = [&](int64_t other) {
      if (other == best) return true;
      if (labels[other] != labels[best]) return false;
      const RotatedBox rival = planar(boxes + 5 * other);
      // IoU is at most the ratio of the areas; the margin leaves close calls to the real number.
      const double less = smaller(box.area(), rival.area()), more = larger(box.area(), rival.area());
      if (less < (threshold - 1e-9) * more) return false;
      const double iou = rotated_iou(box, rival);
      return inclusive ? iou >= threshold : iou > threshold;
    };
    order.erase(std::remove_if(order.begin(), order.end(), suppressed), order.end());
  }
  return kept;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, const Tensor& labels, double threshold,
           bool inclusive) {
  const Tensor rows = checked(boxes, 5);
  const int64_t n = rows.size(0);
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == n && scores.scalar_type() == ScalarType::Double,
                  "rotated_nms: scores must be float64 (N)");
  STD_TORCH_CHECK(labels.dim() == 1 && labels.size(0) == n && labels.scalar_type() == ScalarType::Long,
                  "rotated_nms: labels must be int64 (N)");
  const Tensor flat_scores = torch::stable::contiguous(scores),
               flat_labels = torch::stable::contiguous(labels);
  const double* score = static_cast<const double*>(flat_scores.const_data_ptr());
  // NaN has no place in an order, and sorting with it is undefined.
  for (int64_t i = 0; i < n; ++i) STD_TORCH_CHECK(score[i] == score[i], "rotated_nms: score ", i, " is NaN");
  const std::vector<int64_t> kept = survivors(static_cast<const double*>(rows.const_data_ptr()),
                                              static_cast<const int64_t*>(flat_labels.const_data_ptr()),
                                              by_score(score, n), threshold, inclusive);
  Tensor out = torch::stable::new_empty(rows, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace
}  // namespace bevkd2::box3d

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  m.impl("rotated_intersection", TORCH_BOX(&bevkd2::box3d::intersections));
  m.impl("rotated_iou", TORCH_BOX(&bevkd2::box3d::ious));
  m.impl("box3d_iou", TORCH_BOX(&bevkd2::box3d::ious_3d));
  m.impl("rotated_nms", TORCH_BOX(&bevkd2::box3d::nms));
}
