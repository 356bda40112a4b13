// Overlap of rotated rectangles on the ground plane and of upright 3D boxes, as pure functions in double.
// No torch, no allocation; the ops of csrc/box3d and KITTI's evaluation share them.
//
//   rectangle_of(box)                          input of the other functions: sine and cosine are computed
//   once per box circles_overlap(a, reach, b, reach)        false where the rectangles cannot intersect
//   (cheap) intersection_area(a, b)                    area of the intersection of two rectangles
//   intersection_over_union(shared, a, b)      from an intersection and two areas (or volumes)
//   interval_overlap(low, high, low, high)     shared length of two intervals: heights
//   volume_iou(a, heights, b, heights)         the three above
//
// A rectangle's angle turns its length from +x towards +y. In KITTI's camera axes (x right, z forward) a box
// is {x, z, l, w, -rotation_y}, its heights reach from y - h to y (y of the bottom face, down).
//
// Rectangles without area intersect nothing, and the IoU of two of them is 0, not 0 / 0. NaN in, NaN or any
// area up to the smaller rectangle's out: never a memory error.
#pragma once

#include <cmath>

#include "macros.h"

namespace bevkd2::box3d {

// std::min and std::max are host functions to nvcc.
BEVKD2_HOST_DEVICE double smaller(double a, double b) { return b < a ? b : a; }
BEVKD2_HOST_DEVICE double larger(double a, double b) { return b > a ? b : a; }
BEVKD2_HOST_DEVICE double magnitude(double a) { return std::fabs(a); }
BEVKD2_HOST_DEVICE double choose(bool condition, double a, double b) { return condition ? a : b; }

#include "rotated_overlap.h"

struct RotatedBox {
  double x, y;           // centre
  double length, width;  // >= 0; the length lies along the angle
  double angle;          // radians, counter-clockwise from +x
};

BEVKD2_HOST_DEVICE Rectangle<double> rectangle_of(const RotatedBox& box) {
  return {box.x, box.y, 0.5 * box.length, 0.5 * box.width, std::cos(box.angle), std::sin(box.angle)};
}

// Radius of the circle through the corners, slightly enlarged so that rounding never separates boxes that
// touch.
BEVKD2_HOST_DEVICE double reach_of(const Rectangle<double>& a) {
  return (1 + 1e-12) * std::sqrt(a.half_length * a.half_length + a.half_width * a.half_width);
}

BEVKD2_HOST_DEVICE bool circles_overlap(const Rectangle<double>& a, double reach_a,
                                        const Rectangle<double>& b, double reach_b) {
  const double dx = b.x - a.x, dy = b.y - a.y, reach = reach_a + reach_b;
  return dx * dx + dy * dy <= reach * reach;
}

}  // namespace bevkd2::box3d
