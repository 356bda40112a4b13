// Matching of objects with detections, and precision over recall.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "pairs.h"

namespace bevkd2::kitti {

constexpr int kRecallSteps = 41;

enum State : int8_t { kCounts, kIgnored, kAbsent };

inline State truth_state(const Object& truth, const Class& cls, const Difficulty& difficulty) {
  const bool hard = truth.occluded > difficulty.max_occluded || truth.truncated > difficulty.max_truncated ||
                    truth.y2 - truth.y1 <= difficulty.min_height;
  return truth.type == cls.type && !hard && !truth.ignored ? kCounts : kIgnored;
}

// The height comes before the class: a low detection of any class is ignored, and may take an object with it.
// Exactly 25 pixels are enough for a detection, though not for an object.
inline State detection_state(const Object& det, const Class& cls, const Difficulty& difficulty) {
  if (image_height(det) < difficulty.min_height) return kIgnored;
  if (det.type != cls.type) return kAbsent;
  return det.ignored ? kIgnored : kCounts;
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
inline std::vector<double> recall_thresholds(std::vector<double> scores, int64_t n_gt) {
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
inline void make_monotone(std::vector<double>& values, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] = *std::max_element(values.begin() + i, values.end());
}

// Precision is indexed by the number of the threshold, not by recall: where there are fewer than 41, the
// rest stays 0.
inline Curve make_curve(Matching matching) {
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

}  // namespace bevkd2::kitti
