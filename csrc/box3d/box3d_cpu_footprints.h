// Boxes as the CPU kernels read them: one array per number, with sine and cosine computed once per box.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../core/rotated_box.h"

namespace bevkd2::box3d {

struct Footprint {
  Rectangle<double> rectangle;
  double reach;      // radius of the circle through the corners
  double low, high;  // heights; 0 for planar boxes
};

class Footprints {
 public:
  // A kernel's vectors may read past the end.
  static constexpr int64_t kPadding = 8;

  // Padding and boxes that were not set are NaN, which overlaps nothing.
  explicit Footprints(int64_t size)
      : size_(size),
        stride_(size + kPadding),
        numbers_(kFields * stride_, std::numeric_limits<double>::quiet_NaN()) {}

  int64_t size() const { return size_; }
  const double* x() const { return field(0); }
  const double* y() const { return field(1); }
  const double* half_length() const { return field(2); }
  const double* half_width() const { return field(3); }
  const double* cos() const { return field(4); }
  const double* sin() const { return field(5); }
  const double* reach() const { return field(6); }
  const double* low() const { return field(7); }
  const double* high() const { return field(8); }

  void set(int64_t i, const Footprint& box) {
    const Rectangle<double>& r = box.rectangle;
    const double numbers[kFields] = {r.x,   r.y,       r.half_length, r.half_width, r.cos,
                                     r.sin, box.reach, box.low,       box.high};
    for (int64_t k = 0; k < kFields; ++k) numbers_[k * stride_ + i] = numbers[k];
  }

  Footprint at(int64_t i) const {
    const Rectangle<double> rectangle{x()[i], y()[i], half_length()[i], half_width()[i], cos()[i], sin()[i]};
    return {rectangle, reach()[i], low()[i], high()[i]};
  }

 private:
  static constexpr int64_t kFields = 9;

  const double* field(int64_t k) const { return numbers_.data() + k * stride_; }

  int64_t size_, stride_;
  std::vector<double> numbers_;
};

// A row is x, y, length, width, angle.
inline Footprint planar(const double* row) {
  const Rectangle<double> rectangle = rectangle_of({row[0], row[1], row[2], row[3], row[4]});
  return {rectangle, reach_of(rectangle), 0, 0};
}

// A row is x, y, z of the centre, length, width, height, yaw.
inline Footprint upright(const double* row) {
  const Rectangle<double> rectangle = rectangle_of({row[0], row[1], row[3], row[4], row[6]});
  return {rectangle, reach_of(rectangle), row[2] - 0.5 * row[5], row[2] + 0.5 * row[5]};
}

}  // namespace bevkd2::box3d
