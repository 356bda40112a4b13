// The order in which the CPU goes through queries: those that sample the same cell of a value map one after
// another, so that its pixels are still in the second-level cache. Raster order would only keep neighbours in
// a row together. The order depends on the data alone, never on threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../core/parallel.h"
#include "ms_deform_attn_problem.h"

namespace bevkd2::msda {

constexpr int kCellPixels = 32;  // of the largest level, in each axis

// Cells over a normalised axis; a number outside (NaN too) is in the first or the last one.
struct CellAxis {
  int64_t cells;

  explicit CellAxis(int pixels) : cells((pixels + kCellPixels - 1) / kCellPixels) {}

  template <typename A>
  int64_t cell(A x) const {
    if (!(x > A(0))) return 0;
    return x < A(1) ? std::min(static_cast<int64_t>(x * A(cells)), cells - 1) : cells - 1;
  }
};

// Where a query samples: its first reference, or its first location.
template <typename T>
const accumulate_t<T>* place_of(const Problem<T>& p, int64_t query) {
  if (!p.references) return p.offsets + 2 * query * p.heads * p.samples();
  return p.row_begin(query) < p.row_end(query) ? p.references_of(p.row_begin(query)) : nullptr;
}

// Numbers 0 .. count ordered by cell. query_of(i): the query that stands for number i; they ascend by value
// batch except in the ragged op.
template <typename T, typename QueryOf>
std::vector<int64_t> order_by_cell(const Problem<T>& p, const std::vector<Level>& levels, int64_t count,
                                   const QueryOf& query_of) {
  int width = 1, height = 1;
  for (const Level& level : levels) {
    width = std::max(width, level.width);
    height = std::max(height, level.height);
  }
  const CellAxis columns(width), rows(height);
  const int64_t cells = rows.cells * columns.cells;
  std::vector<int64_t> begin(p.batches * cells + 2, 0), key(count), order(count);
  parallel_for(0, count, 4096, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t query = query_of(i);
      const auto* place = place_of(p, query);
      key[i] = place ? p.batch_of(p.row_begin(query)) * cells + rows.cell(place[1]) * columns.cells +
                           columns.cell(place[0])
                     : p.batches * cells;
    }
  });
  for (const int64_t k : key) ++begin[k + 1];
  for (size_t k = 1; k < begin.size(); ++k) begin[k] += begin[k - 1];
  for (int64_t i = 0; i < count; ++i) order[begin[key[i]]++] = i;
  return order;
}

}  // namespace bevkd2::msda
