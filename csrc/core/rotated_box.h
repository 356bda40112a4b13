// Overlap of rotated rectangles on the ground plane and of upright 3D boxes, as pure functions in double.
// No torch, no allocation; the ops of csrc/box3d and KITTI's evaluation share them.
//
//   intersection_area(a, b)                    area of the intersection of two rectangles
//   intersection_over_union(shared, a, b)      from an intersection and two areas (or volumes)
//   rotated_iou(a, b)                          the two above
//   interval_overlap(low, high, low, high)     shared length of two intervals: heights
//   circles_overlap(a, b)                      false where the rectangles cannot intersect: a cheap first
//   test
//
// A rectangle's angle turns its length from +x towards +y. In KITTI's camera axes (x right, z forward) a box
// is {x, z, l, w, -rotation_y}, its heights reach from y - h to y (y of the bottom face, down).
//
// Accuracy: the second rectangle is expressed in the first one's frame (the difference of the centres first,
// so a far origin costs nothing), clipped there by four axis-parallel lines, and measured from one of its own
// corners. Identical rectangles give exactly their area, touching ones zero up to rounding. Rectangles
// without area intersect nothing, and the IoU of two of them is 0, not 0 / 0. NaN in, NaN or 0 out: never a
// memory error.
#pragma once

#include <cmath>

#include "macros.h"

namespace bevkd2::box3d {

// std::min and std::max are host functions to nvcc.
BEVKD2_HOST_DEVICE double smaller(double a, double b) { return b < a ? b : a; }
BEVKD2_HOST_DEVICE double larger(double a, double b) { return b > a ? b : a; }

struct RotatedBox {
  double x, y;           // centre
  double length, width;  // >= 0; the length lies along the angle
  double angle;          // radians, counter-clockwise from +x

  BEVKD2_HOST_DEVICE double area() const { return length * width; }
};

struct Point {
  double x, y;
};

// Clipping a convex polygon of four corners by four lines gives at most eight. Were rounding to make it
// concave, one clip adds at most half as many again: 4, 6, 9, 13, 19.
constexpr int kMaxCorners = 20;

struct Polygon {
  Point corners[kMaxCorners];
  int count = 0;

  BEVKD2_HOST_DEVICE void add(Point p) { corners[count++] = p; }
};

// What of the polygon has sign * (x, or y) <= limit.
template <bool kAlongX>
BEVKD2_HOST_DEVICE Polygon clip(const Polygon& polygon, double sign, double limit) {
  Polygon out;
  for (int i = 0; i < polygon.count; ++i) {
    const Point p = polygon.corners[i];
    const Point q = polygon.corners[i + 1 < polygon.count ? i + 1 : 0];
    const double p_along = sign * (kAlongX ? p.x : p.y), q_along = sign * (kAlongX ? q.x : q.y);
    const bool p_in = p_along <= limit, q_in = q_along <= limit;
    if (p_in) out.add(p);
    if (p_in == q_in) continue;
    const double t = (limit - p_along) / (q_along - p_along);
    const double p_across = kAlongX ? p.y : p.x, q_across = kAlongX ? q.y : q.x;
    const double across = p_across + t * (q_across - p_across);
    out.add(kAlongX ? Point{sign * limit, across} : Point{across, sign * limit});
  }
  return out;
}

BEVKD2_HOST_DEVICE double area(const Polygon& polygon) {
  double twice = 0;
  const Point origin = polygon.corners[0];
  for (int i = 2; i < polygon.count; ++i) {
    const Point p = polygon.corners[i - 1], q = polygon.corners[i];
    twice += (p.x - origin.x) * (q.y - origin.y) - (p.y - origin.y) * (q.x - origin.x);
  }
  return 0.5 * twice;
}

// The corners of `box`, counter-clockwise, in the frame whose origin and x axis are those of `frame`.
BEVKD2_HOST_DEVICE Polygon corners_in_frame(const RotatedBox& box, const RotatedBox& frame) {
  const double frame_cos = std::cos(frame.angle), frame_sin = std::sin(frame.angle);
  const double dx = box.x - frame.x, dy = box.y - frame.y;
  const double x = frame_cos * dx + frame_sin * dy, y = frame_cos * dy - frame_sin * dx;
  const double turn = box.angle - frame.angle;
  const double turn_cos = std::cos(turn), turn_sin = std::sin(turn);
  const double along_x = 0.5 * box.length * turn_cos, along_y = 0.5 * box.length * turn_sin;
  const double across_x = -0.5 * box.width * turn_sin, across_y = 0.5 * box.width * turn_cos;
  Polygon out;
  out.add({x + along_x + across_x, y + along_y + across_y});
  out.add({x - along_x + across_x, y - along_y + across_y});
  out.add({x - along_x - across_x, y - along_y - across_y});
  out.add({x + along_x - across_x, y + along_y - across_y});
  return out;
}

BEVKD2_HOST_DEVICE bool circles_overlap(const RotatedBox& a, const RotatedBox& b) {
  const double dx = a.x - b.x, dy = a.y - b.y;
  const double squared_a = a.length * a.length + a.width * a.width;
  const double squared_b = b.length * b.length + b.width * b.width;
  // (ra + rb)^2 <= 2 ra^2 + 2 rb^2 needs no root: a looser circle, still safe.
  return dx * dx + dy * dy <= 0.5 * (squared_a + squared_b);
}

BEVKD2_HOST_DEVICE double intersection_area(const RotatedBox& a, const RotatedBox& b) {
  if (!circles_overlap(a, b)) return 0;
  Polygon polygon = corners_in_frame(b, a);
  polygon = clip<true>(polygon, 1, 0.5 * a.length);
  polygon = clip<true>(polygon, -1, 0.5 * a.length);
  polygon = clip<false>(polygon, 1, 0.5 * a.width);
  polygon = clip<false>(polygon, -1, 0.5 * a.width);
  if (polygon.count < 3) return 0;
  return smaller(larger(area(polygon), 0), smaller(a.area(), b.area()));
}

BEVKD2_HOST_DEVICE double intersection_over_union(double shared, double a, double b) {
  const double united = a + b - shared;
  return united > 0 ? shared / united : 0;
}

BEVKD2_HOST_DEVICE double rotated_iou(const RotatedBox& a, const RotatedBox& b) {
  return intersection_over_union(intersection_area(a, b), a.area(), b.area());
}

BEVKD2_HOST_DEVICE double interval_overlap(double low_a, double high_a, double low_b, double high_b) {
  return larger(0, smaller(high_a, high_b) - larger(low_a, low_b));
}

}  // namespace bevkd2::box3d
