#pragma once

namespace bevkd2::box3d {

// What is measured of two boxes.
enum class Overlap { kArea, kIou, kVolumeIou };

// When one box suppresses another.
struct Rule {
  double threshold;
  bool inclusive;

  // An IoU of 0 is enough: boxes that are apart suppress one another too.
  bool anywhere() const { return inclusive && threshold <= 0; }
};

}  // namespace bevkd2::box3d
