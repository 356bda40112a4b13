// Which detections overlap which objects by more than the minimum. They are few; the matchings look at
// nothing else.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "objects.h"

namespace bevkd2::kitti {

inline double image_overlap(const Object& det, const Object& other, bool of_detection) {
  const double width = std::min(det.x2, other.x2) - std::max(det.x1, other.x1);
  const double height = std::min(det.y2, other.y2) - std::max(det.y1, other.y1);
  if (width <= 0 || height <= 0) return 0;
  const double shared = width * height;
  const double area = (det.x2 - det.x1) * (det.y2 - det.y1);
  if (of_detection) return shared / area;
  return shared / (area + (other.x2 - other.x1) * (other.y2 - other.y1) - shared);
}

// Intersection over union, or over the detection's own area or volume.
inline double overlap(Metric metric, const Object& det, const Object& other, bool of_detection) {
  if (metric == Metric::kImage) return image_overlap(det, other, of_detection);
  const box3d::Rectangle<double>&a = det.footprint.rectangle, &b = other.footprint.rectangle;
  if (!box3d::circles_overlap(a, det.footprint.reach, b, other.footprint.reach)) return 0;
  double shared = box3d::intersection_area(a, b);
  double size = a.area(), other_size = b.area();
  if (metric == Metric::kSolid) {
    shared *= box3d::interval_overlap(det.bottom - det.height, det.bottom, other.bottom - other.height,
                                      other.bottom);
    size *= det.height;
    other_size *= other.height;
  }
  if (shared <= 0) return 0;
  return of_detection ? shared / size : box3d::intersection_over_union(shared, size, other_size);
}

struct Candidate {
  int64_t detection;
  double overlap;
};

struct Truth {
  int64_t object;
  size_t begin, end;  // its candidates, in the order of the file
};

// Of one class and metric: which detections may match which objects, and which lie in unlabelled regions.
struct Pairs {
  std::vector<Truth> truths;
  std::vector<Candidate> candidates;
  std::vector<uint8_t> unlabelled;  // by detection
};

inline bool lies_in_unlabelled(const Objects& truths, size_t image, const Object& det, int dont_care,
                               Metric metric, double min_overlap) {
  for (int64_t i = truths.splits[image]; i < truths.splits[image + 1]; ++i) {
    const Object& region = truths.rows[i];
    if (region.type == dont_care && overlap(metric, det, region, true) > min_overlap) return true;
  }
  return false;
}

inline Pairs find_pairs(const Objects& truths, const Objects& dets, const Class& cls, Metric metric,
                        double min_overlap) {
  Pairs pairs;
  pairs.unlabelled.assign(dets.rows.size(), 0);
  double low = 0;
  for (const Difficulty& difficulty : kDifficulties) low = std::max(low, difficulty.min_height);
  std::vector<int64_t> relevant;
  for (size_t image = 0; image + 1 < truths.splits.size(); ++image) {
    relevant.clear();
    for (int64_t j = dets.splits[image]; j < dets.splits[image + 1]; ++j) {
      const Object& det = dets.rows[j];
      if (det.type == cls.type || image_height(det) < low) relevant.push_back(j);
      if (det.type == cls.type)
        pairs.unlabelled[j] = lies_in_unlabelled(truths, image, det, cls.dont_care, metric, min_overlap);
    }
    for (int64_t i = truths.splits[image]; i < truths.splits[image + 1]; ++i) {
      const Object& truth = truths.rows[i];
      if (truth.type != cls.type && truth.type != cls.neighbour) continue;
      const size_t begin = pairs.candidates.size();
      for (int64_t j : relevant) {
        const double value = overlap(metric, dets.rows[j], truth, false);
        if (value > min_overlap) pairs.candidates.push_back({j, value});
      }
      pairs.truths.push_back({i, begin, pairs.candidates.size()});
    }
  }
  return pairs;
}

}  // namespace bevkd2::kitti
