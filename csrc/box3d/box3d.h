// Overlaps of rotated boxes and their suppression: what the CPU and CUDA kernels share, and the four ops in
// terms of two functions that a device supplies (Backend::overlaps, Backend::suppress). All is float64, and
// nothing has a gradient. The maths is in core/rotated_box.h.
#pragma once

#include <torch/csrc/stable/library.h>

#include "../core/dispatch.h"

namespace bevkd2::box3d {

// Numbers of a box: x, y, length, width, angle; or x, y, z of the centre, length, width, height, yaw.
constexpr int64_t kPlanarColumns = 5, kUprightColumns = 7;

// What is measured of two boxes; volumes of upright boxes, the others of planar ones.
enum class Overlap { kArea, kIou, kVolumeIou };

constexpr int64_t columns_of(Overlap overlap) {
  return overlap == Overlap::kVolumeIou ? kUprightColumns : kPlanarColumns;
}

// All pairs of n boxes with m others; out is (n, m).
struct Pairs {
  Overlap overlap;
  const double *a, *b;
  int64_t n, m;
  double* out;
};

// When one box suppresses another.
struct Rule {
  double threshold;
  bool inclusive;

  // An IoU of 0 is enough, so boxes that are apart suppress one another too.
  bool anywhere() const { return inclusive && threshold <= 0; }
};

// n planar boxes, with their scores and labels.
struct Candidates {
  const double *boxes, *scores;
  const int64_t* labels;
  int64_t n;
  Rule rule;
};

// A device supplies overlaps(pairs, a tensor of its device), which fills pairs.out, and
// suppress(candidates, the scores), which returns the indices that are kept, by falling score.
template <typename Backend>
struct Ops {
  static Tensor checked_boxes(const Tensor& boxes, int64_t columns) {
    STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == columns && boxes.scalar_type() == ScalarType::Double,
                    "box3d: boxes must be float64 (N, ", columns, ")");
    return torch::stable::contiguous(boxes);
  }

  // (n) numbers of a dtype, one of each box.
  static Tensor checked_numbers(const char* name, const Tensor& numbers, const Tensor& boxes,
                                ScalarType dtype) {
    STD_TORCH_CHECK(numbers.dim() == 1 && numbers.size(0) == boxes.size(0) && numbers.scalar_type() == dtype,
                    "rotated_nms: ", name,
                    dtype == ScalarType::Double ? " must be float64 (N)" : " must be int64 (N)");
    check_device(numbers, boxes);
    return torch::stable::contiguous(numbers);
  }

  static void check_device(const Tensor& tensor, const Tensor& boxes) {
    STD_TORCH_CHECK(
        tensor.is_cuda() == boxes.is_cuda() && tensor.get_device_index() == boxes.get_device_index(),
        "box3d: the tensors must be on one device");
  }

  static Tensor overlaps(Overlap overlap, const Tensor& a, const Tensor& b) {
    const int64_t columns = columns_of(overlap);
    const Tensor first = checked_boxes(a, columns), second = checked_boxes(b, columns);
    check_device(second, first);
    const int64_t n = first.size(0), m = second.size(0);
    Tensor out = torch::stable::new_empty(first, {n, m});
    Backend::overlaps({overlap, static_cast<const double*>(first.const_data_ptr()),
                       static_cast<const double*>(second.const_data_ptr()), n, m,
                       static_cast<double*>(out.mutable_data_ptr())},
                      first);
    return out;
  }

  static Tensor intersection(const Tensor& a, const Tensor& b) { return overlaps(Overlap::kArea, a, b); }
  static Tensor iou(const Tensor& a, const Tensor& b) { return overlaps(Overlap::kIou, a, b); }
  static Tensor volume_iou(const Tensor& a, const Tensor& b) { return overlaps(Overlap::kVolumeIou, a, b); }

  static Tensor nms(const Tensor& boxes, const Tensor& scores, const Tensor& labels, double threshold,
                    bool inclusive) {
    const Tensor rows = checked_boxes(boxes, kPlanarColumns);
    const Tensor score = checked_numbers("scores", scores, rows, ScalarType::Double);
    const Tensor label = checked_numbers("labels", labels, rows, ScalarType::Long);
    return Backend::suppress({static_cast<const double*>(rows.const_data_ptr()),
                              static_cast<const double*>(score.const_data_ptr()),
                              static_cast<const int64_t*>(label.const_data_ptr()),
                              rows.size(0),
                              {threshold, inclusive}},
                             score);
  }

  template <typename Library>
  static void register_all(Library& m) {
    m.impl("rotated_intersection", TORCH_BOX(&intersection));
    m.impl("rotated_iou", TORCH_BOX(&iou));
    m.impl("box3d_iou", TORCH_BOX(&volume_iou));
    m.impl("rotated_nms", TORCH_BOX(&nms));
  }
};

}  // namespace bevkd2::box3d
