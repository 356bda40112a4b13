// What runs over many pairs of boxes, for the instruction set of this machine. The results are the same bits
// for each of them.
#pragma once

#include <cstdint>

#include "footprints.h"
#include "overlap.h"

namespace bevkd2::box3d {

struct Kernels {
  // out[j] of columns [begin, end), at most kTile of them.
  void (*overlaps)(Overlap overlap, const Footprint& row, const Footprints& columns, int64_t begin,
                   int64_t end, double* out);
  // Sets gone[j] where the row suppresses column j of [begin, end), at most kTile, of the row's label.
  void (*suppress)(const Rule& rule, const Footprint& row, int64_t label, const Footprints& columns,
                   const int64_t* labels, int64_t begin, int64_t end, uint8_t* gone);
};

constexpr int64_t kTile = 512;

const Kernels& kernels();

}  // namespace bevkd2::box3d
