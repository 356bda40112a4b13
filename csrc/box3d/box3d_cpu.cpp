// Overlaps of rotated boxes and their suppression on the CPU: the kernels of box3d_cpu_kernels.h, for the
// instruction sets of core/cpu_dispatch.h, which all give the same bits.
//
// Suppression is greedy and takes boxes in blocks, by falling score. Within a block each survivor suppresses
// the later boxes; then the survivors of the block suppress all that are left, and threads share that work.
// Those are sorted by label and x and divided into cells of neighbours: most survivors are too far from most
// cells.
#include "box3d.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "../core/cpu_dispatch.h"
#include "../core/parallel.h"
#include "box3d_cpu_footprints.h"

namespace bevkd2::box3d {
namespace {

constexpr int64_t kTile = 512;      // columns that a kernel takes at most
constexpr int64_t kTileGrain = 32;  // tiles that are worth a thread, at a few nanoseconds per pair
constexpr int64_t kBlock = kTile;   // boxes
constexpr int64_t kCell = 64;       // boxes
constexpr int64_t kCellGrain = 16;  // cells that are worth a thread: each meets the survivors of a block

// kLanes pairs of boxes at a time: arithmetic of Lanes, and what box3d_cpu_lanes_avx2.h has besides.
namespace plain {
using Lanes = double;
constexpr int kLanes = 1;
inline Lanes load(const double* from) { return *from; }
inline Lanes gather(const double* from, const int32_t* at) { return from[*at]; }
inline void store(double* to, Lanes a) { *to = a; }
inline unsigned bits(bool mask) { return mask; }  // bit i: lane i
#include "box3d_cpu_kernels.h"
}  // namespace plain

#if BEVKD2_HAS_AVX2
BEVKD2_BEGIN_AVX2_WITHOUT_FMA
namespace avx2 {
#include "box3d_cpu_lanes_avx2.h"
constexpr int kLanes = 4;
#include "../core/rotated_overlap.h"
#include "box3d_cpu_kernels.h"
}  // namespace avx2
BEVKD2_END_AVX2
#endif

// out[j] of columns [begin, end), at most kTile of them.
void run_overlaps(Overlap overlap, const Footprint& row, const Footprints& columns, int64_t begin,
                  int64_t end, double* out) {
  BEVKD2_CALL_UNTYPED(overlaps, overlap, row, columns, begin, end, out);
}

// Sets gone[j] where the row suppresses column j of [begin, end), at most kTile of them, of the row's label.
void run_suppress(const Rule& rule, const Footprint& row, int64_t label, const Footprints& columns,
                  const int64_t* labels, int64_t begin, int64_t end, uint8_t* gone) {
  BEVKD2_CALL_UNTYPED(suppress, rule, row, label, columns, labels, begin, end, gone);
}

Footprints read(const double* boxes, int64_t count, int64_t columns) {
  Footprints footprints(count);
  for (int64_t i = 0; i < count; ++i) {
    const double* row = boxes + i * columns;
    footprints.set(i, columns == kPlanarColumns ? planar(row) : upright(row));
  }
  return footprints;
}

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
      run_suppress(rule_, members.at(i), labels[i], members, labels, i + 1, count, gone);
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
    parallel_for(0, cells, kCellGrain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c)
        for (size_t i = 0; i < rows.size(); ++i)
          if (labels[i] == labels_[cells_[c].begin] && cells_[c].meets(rows[i]))
            run_suppress(rule_, rows[i], labels[i], boxes_, labels_.data(), cells_[c].begin, cells_[c].end,
                         gone_.data());
    });
  }

  const Rule rule_;
  std::vector<int64_t> places_;  // of each box in the order by label and x
  // The rest is in that order.
  Footprints boxes_;
  std::vector<int64_t> labels_;
  std::vector<uint8_t> gone_;  // suppressed, or handled already
  std::vector<Cell> cells_;
};

// Sorting by numbers with NaN among them is undefined.
void check_numbers(const double* boxes, const double* scores, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    STD_TORCH_CHECK(!std::isnan(scores[i]), "rotated_nms: score ", i, " is NaN");
    const double* row = boxes + kPlanarColumns * i;
    bool good = row[2] >= 0 && row[3] >= 0;
    for (int64_t k = 0; k < kPlanarColumns; ++k) good = good && std::isfinite(row[k]);
    STD_TORCH_CHECK(good, "rotated_nms: box ", i, " is not finite or of negative size");
  }
}

struct Cpu {
  static void overlaps(const Pairs& p, const Tensor& /*like*/) {
    const int64_t numbers = columns_of(p.overlap), tiles = (p.m + kTile - 1) / kTile;
    const Footprints rows = read(p.a, p.n, numbers), columns = read(p.b, p.m, numbers);
    parallel_for(0, p.n * tiles, kTileGrain, [&](int64_t first, int64_t last) {
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t i = tile / tiles, begin = tile % tiles * kTile, end = std::min(begin + kTile, p.m);
        run_overlaps(p.overlap, rows.at(i), columns, begin, end, p.out + i * p.m);
      }
    });
  }

  static Tensor suppress(const Candidates& c, const Tensor& scores) {
    check_numbers(c.boxes, c.scores, c.n);
    Suppression suppression(c.boxes, c.labels, c.n, c.rule);
    const std::vector<int64_t> kept = suppression.survivors(by_score(c.scores, c.n));
    Tensor out = torch::stable::new_empty(scores, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
    std::copy(kept.begin(), kept.end(), static_cast<int64_t*>(out.mutable_data_ptr()));
    return out;
  }
};

}  // namespace
}  // namespace bevkd2::box3d

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  using namespace bevkd2::box3d;
  Ops<Cpu>::register_all(m);
}
