// Overlaps of all pairs of boxes on CUDA, in float64: a thread a pair, the columns along the threads. Most
// pairs are too far apart, and write 0 after a glance at their circles. Nothing waits for the device.
#include "device_boxes.cuh"
#include "overlap.h"

namespace bevkd2::box3d {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;

__global__ void prepare_kernel(const double* rows, int64_t n, int64_t numbers, DeviceBox* out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) out[i] = device_box(rows + i * numbers, numbers);
}

template <Overlap kOverlap>
__device__ double overlap_of(const DeviceBox& a, const DeviceBox& b) {
  if (!near(a, b)) return 0;
  if constexpr (kOverlap == Overlap::kArea) return intersection_area(a.exact(), b.exact()).v;
  if constexpr (kOverlap == Overlap::kIou) return planar_iou(a, b);
  return volume_iou(a.exact(), Exact(a.low), Exact(a.high), b.exact(), Exact(b.low), Exact(b.high)).v;
}

template <Overlap kOverlap>
__global__ void pairwise_kernel(const DeviceBox* a, int64_t n, const DeviceBox* b, int64_t m, double* out) {
  const int64_t pair = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (pair < n * m) out[pair] = overlap_of<kOverlap>(a[pair / m], b[pair % m]);
}

Tensor prepared(const Tensor& boxes, cudaStream_t stream) {
  const int64_t n = boxes.size(0);
  Tensor out = torch::stable::new_empty(boxes, {n, kDeviceBoxNumbers});
  cuda::launch(prepare_kernel, cuda::blocks_for(n, kThreads), kThreads, 0, stream,
               static_cast<const double*>(boxes.const_data_ptr()), n, boxes.size(1),
               static_cast<DeviceBox*>(out.mutable_data_ptr()));
  return out;
}

template <Overlap kOverlap>
Tensor pairwise(const Tensor& a, const Tensor& b) {
  constexpr int64_t kNumbers = kOverlap == Overlap::kVolumeIou ? kUprightColumns : kPlanarColumns;
  const Tensor first = checked_boxes(a, kNumbers), second = checked_boxes(b, kNumbers);
  check_device(second, first);
  const cuda::OnDevice device(first);
  const int64_t n = first.size(0), m = second.size(0);
  const Tensor rows = prepared(first, device.stream), columns = prepared(second, device.stream);
  Tensor out = torch::stable::new_empty(first, {n, m});
  cuda::launch(pairwise_kernel<kOverlap>, cuda::blocks_for(n * m, kThreads), kThreads, 0, device.stream,
               static_cast<const DeviceBox*>(rows.const_data_ptr()), n,
               static_cast<const DeviceBox*>(columns.const_data_ptr()), m,
               static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace
}  // namespace bevkd2::box3d

BEVKD2_CUDA_LIBRARY(m) {
  using namespace bevkd2::box3d;
  m.impl("rotated_intersection", TORCH_BOX(&pairwise<Overlap::kArea>));
  m.impl("rotated_iou", TORCH_BOX(&pairwise<Overlap::kIou>));
  m.impl("box3d_iou", TORCH_BOX(&pairwise<Overlap::kVolumeIou>));
}
