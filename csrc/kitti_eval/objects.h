// What KITTI's evaluation reads: objects, and what is asked of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "../core/rotated_box.h"

namespace bevkd2::kitti {

// A score at or below it never matches.
constexpr double kNoScore = -10000000;

enum class Metric { kImage, kGround, kSolid };

struct Difficulty {
  double min_height;  // of the box in the image, pixels
  double max_occluded;
  double max_truncated;
};
constexpr Difficulty kDifficulties[] = {{40, 0, 0.15}, {25, 1, 0.30}, {25, 2, 0.50}};

struct Footprint {
  box3d::Rectangle<double> rectangle;
  double reach;  // radius about the corners
};

struct Object {
  int type;
  bool ignored;
  double truncated, occluded, alpha;
  double x1, y1, x2, y2;
  Footprint footprint;
  double height, bottom;  // metres; the height reaches from bottom - height to bottom (y points down)
  double score;
};

// The objects of image i are splits[i] to splits[i + 1].
struct Objects {
  std::vector<Object> rows;
  std::vector<int64_t> splits;
};

// What is evaluated: a class, its neighbour (-1: none), whose objects are neither right nor wrong, and the
// type that marks regions without labels.
struct Class {
  int type, neighbour, dont_care;
};

// Sizes that are both negative stand for "not given" and make the rectangle of their absolute values, as the
// corners that the official tool computes do; any other pair that is not positive has no area.
inline Footprint footprint_of(double x, double z, double length, double width, double rotation_y) {
  const bool flat = length * width <= 0;
  const box3d::Rectangle<double> rectangle =
      box3d::rectangle_of({x, z, flat ? 0 : std::abs(length), flat ? 0 : std::abs(width), -rotation_y});
  return {rectangle, box3d::reach_of(rectangle)};
}

inline double image_height(const Object& det) { return std::abs(det.y1 - det.y2); }

}  // namespace bevkd2::kitti
