// Boxes as the CUDA kernels read them, in float64.
#pragma once

#include "../core/cuda.cuh"
#include "../core/rotated_box.h"
#include "box3d.h"

namespace bevkd2::box3d {

// A double whose products and sums are not fused: the maths of rotated_overlap.h rounds as it does on the
// CPU, and the difference of equal products is exactly zero.
struct Exact {
  double v;

  Exact() = default;
  BEVKD2_HOST_DEVICE explicit Exact(double value) : v(value) {}
  BEVKD2_HOST_DEVICE Exact operator-() const { return Exact(-v); }
};

#if defined(__CUDA_ARCH__)
#define BEVKD2_EXACT(operation, rounded) \
  BEVKD2_HOST_DEVICE Exact operator operation(Exact a, Exact b) { return Exact(rounded(a.v, b.v)); }
#else
#define BEVKD2_EXACT(operation, rounded) \
  BEVKD2_HOST_DEVICE Exact operator operation(Exact a, Exact b) { return Exact(a.v operation b.v); }
#endif
BEVKD2_EXACT(+, __dadd_rn)
BEVKD2_EXACT(-, __dsub_rn)
BEVKD2_EXACT(*, __dmul_rn)
BEVKD2_EXACT(/, __ddiv_rn)
#undef BEVKD2_EXACT

BEVKD2_HOST_DEVICE bool operator==(Exact a, Exact b) { return a.v == b.v; }
BEVKD2_HOST_DEVICE bool operator>(Exact a, Exact b) { return a.v > b.v; }
BEVKD2_HOST_DEVICE bool operator>=(Exact a, Exact b) { return a.v >= b.v; }

BEVKD2_HOST_DEVICE Exact smaller(Exact a, Exact b) { return Exact(smaller(a.v, b.v)); }
BEVKD2_HOST_DEVICE Exact larger(Exact a, Exact b) { return Exact(larger(a.v, b.v)); }
BEVKD2_HOST_DEVICE Exact magnitude(Exact a) { return Exact(magnitude(a.v)); }
BEVKD2_HOST_DEVICE Exact choose(bool condition, Exact a, Exact b) { return condition ? a : b; }

// One box; heights are 0 for planar ones.
struct alignas(16) DeviceBox {
  Rectangle<double> rectangle;
  double reach, low, high, unused;

  __device__ Rectangle<Exact> exact() const {
    const Rectangle<double>& r = rectangle;
    return {Exact(r.x), Exact(r.y), Exact(r.half_length), Exact(r.half_width), Exact(r.cos), Exact(r.sin)};
  }
};

constexpr int kDeviceBoxNumbers = sizeof(DeviceBox) / sizeof(double);

// Of a row of 5 (planar) or 7 (upright) numbers.
__device__ inline DeviceBox device_box(const double* row, int64_t numbers) {
  const bool flat = numbers == kPlanarColumns;
  const double length = row[flat ? 2 : 3], width = row[flat ? 3 : 4], angle = row[flat ? 4 : 6];
  DeviceBox box;
  box.rectangle = rectangle_of({row[0], row[1], length, width, angle});
  box.reach = reach_of(box.rectangle);
  box.low = flat ? 0 : row[2] - 0.5 * row[5];
  box.high = flat ? 0 : row[2] + 0.5 * row[5];
  box.unused = 0;
  return box;
}

__device__ inline bool near(const DeviceBox& a, const DeviceBox& b) {
  return circles_overlap(a.rectangle, a.reach, b.rectangle, b.reach);
}

__device__ inline double planar_iou(const DeviceBox& a, const DeviceBox& b) {
  const Rectangle<Exact> first = a.exact(), second = b.exact();
  return intersection_over_union(intersection_area(first, second), first.area(), second.area()).v;
}

}  // namespace bevkd2::box3d
