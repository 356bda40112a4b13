// Greedy suppression on the CPU. Boxes are taken in blocks by falling score. Within a block each survivor
// suppresses the later ones; then the survivors of the block suppress all that are left, which threads share.
// Those lie sorted by label and x, in cells of neighbours: most survivors are too far from most cells.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "checks.h"
#include "kernels.h"

namespace bevkd2::box3d {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kBlock = kTile, kCell = 64;
// Cells that are worth a thread: each meets the survivors of a block.
constexpr int64_t kGrain = 16;

// Neighbours of one label, and the rectangle that holds their circles.
struct Cell {
  int64_t begin, end;
  double x_low, x_high, y_low, y_high;

  bool meets(const Footprint& box) const {
    const double x = box.rectangle.x, y = box.rectangle.y, reach = box.reach;
    return x + reach >= x_low && x - reach <= x_high && y + reach >= y_low && y - reach <= y_high;
  }
};

// Positions by falling score, the first of equals first.
std::vector<int64_t> by_score(const double* scores, int64_t n) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return scores[i] > scores[j]; });
  return order;
}

std::vector<int64_t> by_label_and_x(const double* boxes, const int64_t* labels, int64_t n) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    if (labels[i] != labels[j]) return labels[i] < labels[j];
    return boxes[kPlanarColumns * i] < boxes[kPlanarColumns * j];
  });
  return order;
}

class Suppression {
 public:
  Suppression(const double* boxes, const int64_t* labels, int64_t n, const Rule& rule)
      : rule_(rule), places_(n), boxes_(n), labels_(n), gone_(n, 0) {
    const std::vector<int64_t> order = by_label_and_x(boxes, labels, n);
    for (int64_t place = 0; place < n; ++place) {
      const int64_t index = order[place];
      Footprint box = planar(boxes + kPlanarColumns * index);
      if (rule.anywhere()) box.reach = std::numeric_limits<double>::infinity();
      places_[index] = place;
      boxes_.set(place, box);
      labels_[place] = labels[index];
    }
    for (int64_t begin = 0; begin < n;) begin = add_cell(begin);
  }

  std::vector<int64_t> survivors(const std::vector<int64_t>& by_score) {
    std::vector<int64_t> kept, block;
    for (size_t next = 0; next < by_score.size();) {
      block.clear();
      for (; next < by_score.size() && block.size() < size_t{kBlock}; ++next)
        if (!gone_[places_[by_score[next]]]) block.push_back(by_score[next]);
      for (int64_t index : block) gone_[places_[index]] = 1;
      keep_survivors(&block);
      kept.insert(kept.end(), block.begin(), block.end());
      if (next < by_score.size()) suppress_others(block);
    }
    return kept;
  }

 private:
  int64_t add_cell(int64_t begin) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    Cell cell{begin, begin, kInfinity, -kInfinity, kInfinity, -kInfinity};
    const int64_t limit = std::min<int64_t>(begin + kCell, boxes_.size());
    for (; cell.end < limit && labels_[cell.end] == labels_[begin]; ++cell.end) {
      const double x = boxes_.x()[cell.end], y = boxes_.y()[cell.end], reach = boxes_.reach()[cell.end];
      cell.x_low = std::min(cell.x_low, x - reach);
      cell.x_high = std::max(cell.x_high, x + reach);
      cell.y_low = std::min(cell.y_low, y - reach);
      cell.y_high = std::max(cell.y_high, y + reach);
    }
    cells_.push_back(cell);
    return cell.end;
  }

  void keep_survivors(std::vector<int64_t>* block) const {
    const int64_t count = static_cast<int64_t>(block->size());
    Footprints members(count);
    int64_t labels[kBlock];
    uint8_t gone[kBlock] = {};
    for (int64_t i = 0; i < count; ++i) {
      members.set(i, boxes_.at(places_[(*block)[i]]));
      labels[i] = labels_[places_[(*block)[i]]];
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (gone[i]) continue;
      (*block)[kept++] = (*block)[i];
      kernels().suppress(rule_, members.at(i), labels[i], members, labels, i + 1, count, gone);
    }
    block->resize(kept);
  }

  void suppress_others(const std::vector<int64_t>& kept) {
    std::vector<Footprint> rows;
    std::vector<int64_t> labels;
    for (int64_t index : kept) {
      rows.push_back(boxes_.at(places_[index]));
      labels.push_back(labels_[places_[index]]);
    }
    const int64_t cells = static_cast<int64_t>(cells_.size());
    torch::stable::parallel_for(0, cells, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c)
        for (size_t i = 0; i < rows.size(); ++i)
          if (labels[i] == labels_[cells_[c].begin] && cells_[c].meets(rows[i]))
            kernels().suppress(rule_, rows[i], labels[i], boxes_, labels_.data(), cells_[c].begin,
                               cells_[c].end, gone_.data());
    });
  }

  const Rule rule_;
  std::vector<int64_t> places_;  // of each box in the order by label and x
  // In that order:
  Footprints boxes_;
  std::vector<int64_t> labels_;
  std::vector<uint8_t> gone_;  // suppressed, or had its turn
  std::vector<Cell> cells_;
};

// NaN has no place in an order, and sorting with it is undefined.
void check_numbers(const double* boxes, const double* scores, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    STD_TORCH_CHECK(!std::isnan(scores[i]), "rotated_nms: score ", i, " is NaN");
    const double* row = boxes + kPlanarColumns * i;
    bool good = row[2] >= 0 && row[3] >= 0;
    for (int64_t k = 0; k < kPlanarColumns; ++k) good = good && std::isfinite(row[k]);
    STD_TORCH_CHECK(good, "rotated_nms: box ", i, " is not finite or of negative size");
  }
}

Tensor nms(const Tensor& boxes, const Tensor& scores, const Tensor& labels, double threshold,
           bool inclusive) {
  const Tensor rows = checked_boxes(boxes, kPlanarColumns);
  const int64_t n = rows.size(0);
  const Tensor flat_scores = checked_scores(scores, n), flat_labels = checked_labels(labels, n);
  check_device(flat_scores, rows);
  check_device(flat_labels, rows);
  const double* box = static_cast<const double*>(rows.const_data_ptr());
  const double* score = static_cast<const double*>(flat_scores.const_data_ptr());
  check_numbers(box, score, n);
  Suppression suppression(box, static_cast<const int64_t*>(flat_labels.const_data_ptr()), n,
                          {threshold, inclusive});
  const std::vector<int64_t> kept = suppression.survivors(by_score(score, n));
  Tensor out = torch::stable::new_empty(rows, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace
}  // namespace bevkd2::box3d

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) { m.impl("rotated_nms", TORCH_BOX(&bevkd2::box3d::nms)); }
