// What the ops of boxes must not trust anyone for; bevkd2/ops/box3d.py converts and names what does not fit.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace bevkd2::box3d {

constexpr int64_t kPlanarColumns = 5, kUprightColumns = 7;

inline torch::stable::Tensor checked_boxes(const torch::stable::Tensor& boxes, int64_t columns) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == columns &&
                      boxes.scalar_type() == torch::headeronly::ScalarType::Double,
                  "box3d: boxes must be float64 (N, ", columns, ")");
  return torch::stable::contiguous(boxes);
}

inline void check_device(const torch::stable::Tensor& tensor, const torch::stable::Tensor& boxes) {
  STD_TORCH_CHECK(
      tensor.is_cuda() == boxes.is_cuda() && tensor.get_device_index() == boxes.get_device_index(),
      "box3d: the tensors must be on one device");
}

inline torch::stable::Tensor checked_scores(const torch::stable::Tensor& scores, int64_t n) {
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == n &&
                      scores.scalar_type() == torch::headeronly::ScalarType::Double,
                  "rotated_nms: scores must be float64 (N)");
  return torch::stable::contiguous(scores);
}

inline torch::stable::Tensor checked_labels(const torch::stable::Tensor& labels, int64_t n) {
  STD_TORCH_CHECK(
      labels.dim() == 1 && labels.size(0) == n && labels.scalar_type() == torch::headeronly::ScalarType::Long,
      "rotated_nms: labels must be int64 (N)");
  return torch::stable::contiguous(labels);
}

}  // namespace bevkd2::box3d
