// KITTI's object detection score: matching and precision over recall, for all images at once.
//
// The rules are those of the official development kit (evaluate_object), its corners included; each that
// surprises is named where it is applied. Objects arrive as the columns of their files;
// bevkd2/evaluation/kitti_ap.py reads, checks and presents. No torch here: pybind11 over numpy.
//
// What makes it quick: a detection matters to a ground truth object only where they overlap by more than the
// minimum, and those pairs are few. They are found once for a class and a metric; the 42 matchings of each
// difficulty look at nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/rotated_box.h"

namespace py = pybind11;

namespace bevkd2::kitti {
namespace {

using Footprint = box3d::Rectangle<double>;

constexpr int kRecallSteps = 41;
// A score at or below it never matches.
constexpr double kNoScore = -10000000;

enum class Metric { kImage, kGround, kSolid };

struct Difficulty {
  double min_height;  // of the box in the image, pixels
  double max_occluded;
  double max_truncated;
};
constexpr Difficulty kDifficulties[] = {{40, 0, 0.15}, {25, 1, 0.30}, {25, 2, 0.50}};

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
Footprint footprint_of(double x, double z, double length, double width, double rotation_y) {
  if (length * width <= 0) return box3d::rectangle_of({x, z, 0, 0, -rotation_y});
  return box3d::rectangle_of({x, z, std::abs(length), std::abs(width), -rotation_y});
}

double image_overlap(const Object& det, const Object& other, bool of_detection) {
  const double width = std::min(det.x2, other.x2) - std::max(det.x1, other.x1);
  const double height = std::min(det.y2, other.y2) - std::max(det.y1, other.y1);
  if (width <= 0 || height <= 0) return 0;
  const double shared = width * height;
  const double area = (det.x2 - det.x1) * (det.y2 - det.y1);
  if (of_detection) return shared / area;
  return shared / (area + (other.x2 - other.x1) * (other.y2 - other.y1) - shared);
}

// Intersection over union, or over the detection's own area or volume.
double overlap(Metric metric, const Object& det, const Object& other, bool of_detection) {
  if (metric == Metric::kImage) return image_overlap(det, other, of_detection);
  double shared = box3d::intersection_area(det.footprint, other.footprint);
  double size = det.footprint.area(), other_size = other.footprint.area();
  if (metric == Metric::kSolid) {
    shared *= box3d::interval_overlap(det.bottom - det.height, det.bottom, other.bottom - other.height,
                                      other.bottom);
    size *= det.height;
    other_size *= other.height;
  }
  if (shared <= 0) return 0;
  return of_detection ? shared / size : box3d::intersection_over_union(shared, size, other_size);
}

double image_height(const Object& det) { return std::abs(det.y1 - det.y2); }

enum State : int8_t { kCounts, kIgnored, kAbsent };

State truth_state(const Object& truth, const Class& cls, const Difficulty& difficulty) {
  const bool hard = truth.occluded > difficulty.max_occluded || truth.truncated > difficulty.max_truncated ||
                    truth.y2 - truth.y1 <= difficulty.min_height;
  return truth.type == cls.type && !hard && !truth.ignored ? kCounts : kIgnored;
}

// The height comes before the class: a low detection of any class is ignored, and may take an object with it.
// Exactly 25 pixels are enough for a detection, though not for an object.
State detection_state(const Object& det, const Class& cls, const Difficulty& difficulty) {
  if (image_height(det) < difficulty.min_height) return kIgnored;
  if (det.type != cls.type) return kAbsent;
  return det.ignored ? kIgnored : kCounts;
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

bool lies_in_unlabelled(const Objects& truths, size_t image, const Object& det, int dont_care, Metric metric,
                        double min_overlap) {
  for (int64_t i = truths.splits[image]; i < truths.splits[image + 1]; ++i) {
    const Object& region = truths.rows[i];
    if (region.type == dont_care && overlap(metric, det, region, true) > min_overlap) return true;
  }
  return false;
}

Pairs find_pairs(const Objects& truths, const Objects& dets, const Class& cls, Metric metric,
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

struct Counts {
  int64_t tp = 0, fp = 0, fn = 0;
  double similarity = 0;
};

// Precision over recall; the vectors but precision and aos have an entry a threshold.
struct Curve {
  int64_t n_gt = 0;
  std::vector<double> thresholds, recall, similarity, precision, aos;
  std::vector<int64_t> tp, fp, fn;
};

// Matches the objects of one class, metric and difficulty.
class Matching {
 public:
  Matching(const Objects& truths, const Objects& dets, const Class& cls, const Pairs& pairs,
           const Difficulty& difficulty)
      : truths_(truths), dets_(dets), pairs_(pairs), taken_(dets.rows.size(), 0) {
    for (const Truth& truth : pairs.truths) {
      truth_states_.push_back(truth_state(truths.rows[truth.object], cls, difficulty));
      n_gt_ += truth_states_.back() == kCounts;
    }
    for (size_t j = 0; j < dets.rows.size(); ++j) {
      det_states_.push_back(detection_state(dets.rows[j], cls, difficulty));
      if (countable(j)) scores_.push_back(dets.rows[j].score);
    }
    std::sort(scores_.begin(), scores_.end());
  }

  int64_t n_gt() const { return n_gt_; }

  // Scores of the true positives where each object takes the detection of the highest score, the first of
  // equals.
  std::vector<double> matched_scores() {
    std::vector<double> matched;
    ++run_;
    for (size_t k = 0; k < pairs_.truths.size(); ++k) {
      int64_t best = -1;
      double best_score = kNoScore;
      for (size_t c = pairs_.truths[k].begin; c < pairs_.truths[k].end; ++c) {
        const int64_t j = pairs_.candidates[c].detection;
        if (!free(j) || !(dets_.rows[j].score > best_score)) continue;
        best = j;
        best_score = dets_.rows[j].score;
      }
      if (best < 0) continue;
      taken_[best] = run_;
      if (truth_states_[k] == kCounts && det_states_[best] == kCounts) matched.push_back(best_score);
    }
    return matched;
  }

  // Where each object takes the detection of the largest overlap among those of at least this score.
  Counts count(double threshold) {
    Counts counts;
    int64_t countable_taken = 0;
    ++run_;
    for (size_t k = 0; k < pairs_.truths.size(); ++k) {
      const int64_t best = largest_overlap(pairs_.truths[k], threshold);
      if (best < 0) {
        counts.fn += truth_states_[k] == kCounts;
        continue;
      }
      taken_[best] = run_;
      countable_taken += countable(best);
      if (truth_states_[k] != kCounts || det_states_[best] != kCounts) continue;
      ++counts.tp;
      const double difference = truths_.rows[pairs_.truths[k].object].alpha - dets_.rows[best].alpha;
      counts.similarity += (1 + std::cos(difference)) / 2;
    }
    const auto first = std::lower_bound(scores_.begin(), scores_.end(), threshold);
    counts.fp = (scores_.end() - first) - countable_taken;
    return counts;
  }

 private:
  bool free(int64_t j) const { return det_states_[j] != kAbsent && taken_[j] != run_; }

  // A false positive unless it is taken or its score is too low.
  bool countable(int64_t j) const { return det_states_[j] == kCounts && !pairs_.unlabelled[j]; }

  // A detection that counts replaces one that is ignored; of those ignored the first stays.
  int64_t largest_overlap(const Truth& truth, double threshold) const {
    int64_t best = -1;
    double largest = 0;  // of those that count
    for (size_t c = truth.begin; c < truth.end; ++c) {
      const auto [j, value] = pairs_.candidates[c];
      if (!free(j) || dets_.rows[j].score < threshold) continue;
      if (det_states_[j] == kCounts && value > largest) {
        best = j;
        largest = value;
      } else if (det_states_[j] == kIgnored && best < 0) {
        best = j;
      }
    }
    return best;
  }

  const Objects& truths_;
  const Objects& dets_;
  const Pairs& pairs_;
  std::vector<int64_t> taken_;  // the run in which a detection was matched last
  std::vector<State> truth_states_, det_states_;
  std::vector<double> scores_;  // of countable detections, ascending
  int64_t n_gt_ = 0, run_ = 0;
};

// Scores at about equal steps of recall, from the highest.
std::vector<double> recall_thresholds(std::vector<double> scores, int64_t n_gt) {
  std::sort(scores.begin(), scores.end(), std::greater<double>());
  std::vector<double> thresholds;
  double recall = 0;
  for (size_t i = 0; i < scores.size() && thresholds.size() < kRecallSteps; ++i) {
    const bool last = i + 1 == scores.size();
    const double left = double(i + 1) / double(n_gt);
    const double right = last ? left : double(i + 2) / double(n_gt);
    if (right - recall < recall - left && !last) continue;
    thresholds.push_back(scores[i]);
    recall += 1.0 / (kRecallSteps - 1.0);
  }
  return thresholds;
}

// Each value becomes the largest from it on. A NaN (0 / 0) stays what it is and is passed over by the others,
// as std::max_element does it in the official tool.
void make_monotone(std::vector<double>& values, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] = *std::max_element(values.begin() + i, values.end());
}

// Precision is indexed by the number of the threshold, not by recall: where there are fewer than 41, the
// rest stays 0.
Curve make_curve(Matching matching) {
  Curve curve;
  curve.n_gt = matching.n_gt();
  curve.thresholds = recall_thresholds(matching.matched_scores(), curve.n_gt);
  curve.precision.assign(kRecallSteps, 0);
  curve.aos.assign(kRecallSteps, 0);
  for (size_t i = 0; i < curve.thresholds.size(); ++i) {
    const Counts counts = matching.count(curve.thresholds[i]);
    curve.tp.push_back(counts.tp);
    curve.fp.push_back(counts.fp);
    curve.fn.push_back(counts.fn);
    curve.similarity.push_back(counts.similarity);
    curve.recall.push_back(double(counts.tp) / double(counts.tp + counts.fn));
    curve.precision[i] = double(counts.tp) / double(counts.tp + counts.fp);
    curve.aos[i] = counts.similarity / double(counts.tp + counts.fp);
  }
  make_monotone(curve.precision, curve.thresholds.size());
  make_monotone(curve.aos, curve.thresholds.size());
  return curve;
}

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// The columns of a label or detection file, without the type.
constexpr py::ssize_t kLabelColumns = 14;

Objects read_objects(const Array<int>& types, const Array<double>& columns, const Array<bool>& ignored,
                     const Array<int64_t>& splits, bool scored) {
  const py::ssize_t n = types.size();
  const bool fits = types.ndim() == 1 && ignored.ndim() == 1 && ignored.size() == n && columns.ndim() == 2 &&
                    columns.shape(0) == n && columns.shape(1) == kLabelColumns + scored &&
                    splits.ndim() == 1 && splits.size() > 0;
  if (!fits) throw std::invalid_argument("kitti_eval: the arrays of the objects do not fit together");
  Objects objects;
  objects.splits.assign(splits.data(), splits.data() + splits.size());
  const auto& ends = objects.splits;
  if (ends.front() != 0 || ends.back() != n || !std::is_sorted(ends.begin(), ends.end()))
    throw std::invalid_argument("kitti_eval: splits must rise from 0 to the number of objects");
  objects.rows.reserve(n);
  for (py::ssize_t i = 0; i < n; ++i) {
    const double* c = columns.data(i, 0);  // truncated occluded alpha x1 y1 x2 y2 h w l x y z ry [score]
    objects.rows.push_back({types.data()[i], ignored.data()[i], c[0], c[1], c[2], c[3], c[4], c[5], c[6],
                            footprint_of(c[10], c[12], c[9], c[8], c[13]), c[7], c[11], scored ? c[14] : 0});
  }
  return objects;
}

py::dict as_dict(const Curve& curve) {
  py::dict out;
  out["n_gt"] = curve.n_gt;
  out["thresholds"] = curve.thresholds;
  out["tp"] = curve.tp;
  out["fp"] = curve.fp;
  out["fn"] = curve.fn;
  out["recall"] = curve.recall;
  out["precision"] = curve.precision;
  out["similarity"] = curve.similarity;
  out["aos"] = curve.aos;
  return out;
}

// One curve a difficulty, easy to hard.
py::list curves(const Objects& truths, const Objects& dets, int type, int neighbour, int dont_care,
                int metric, double min_overlap) {
  if (truths.splits.size() != dets.splits.size())
    throw std::invalid_argument("kitti_eval: ground truth and detections are of different numbers of images");
  if (metric < 0 || metric > 2) throw std::invalid_argument("kitti_eval: metric must be 0, 1 or 2");
  const Class cls{type, neighbour, dont_care};
  std::vector<Curve> found;
  {
    py::gil_scoped_release release;
    const Pairs pairs = find_pairs(truths, dets, cls, static_cast<Metric>(metric), min_overlap);
    for (const Difficulty& difficulty : kDifficulties)
      found.push_back(make_curve(Matching(truths, dets, cls, pairs, difficulty)));
  }
  py::list out;
  for (const Curve& curve : found) out.append(as_dict(curve));
  return out;
}

}  // namespace
}  // namespace bevkd2::kitti

PYBIND11_MODULE(_kitti_eval, m) {
  using namespace bevkd2::kitti;
  m.doc() = "KITTI's matching and precision over recall; bevkd2.evaluation.kitti_ap is the way in.";
  py::class_<Objects>(m, "Objects")
      .def(py::init(&read_objects), py::arg("types"), py::arg("columns"), py::arg("ignored"),
           py::arg("splits"), py::arg("scored"));
  m.def("curves", &curves, py::arg("truths"), py::arg("detections"), py::arg("type"), py::arg("neighbour"),
        py::arg("dont_care"), py::arg("metric"), py::arg("min_overlap"));
}
