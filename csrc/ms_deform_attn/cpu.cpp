// Multi-scale deformable attention on the CPU: the kernels of cpu_kernels.h, for the instruction sets of
// core/cpu_dispatch.h.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/cpu_dispatch.h"
#include "ops.h"

namespace bevkd2::msda {
namespace {

// The rows that read one value batch. Without lists: rows first .. first + size, and a row is its own query.
struct RowRange {
  int64_t size;
  int64_t first;
  const int64_t* rows;
  const int64_t* queries;
  int64_t row(int64_t n) const { return rows ? rows[n] : first + n; }
  int64_t query(int64_t n) const { return queries ? queries[n] : first + n; }
};

namespace plain {
using bevkd2::plain::Vec;
#include "cpu_kernels.h"
}  // namespace plain

#if BEVKD2_HAS_AVX2
BEVKD2_BEGIN_AVX2
namespace avx2 {
using bevkd2::avx2::Vec;
#include "cpu_kernels.h"
}  // namespace avx2
BEVKD2_END_AVX2
#endif

// Queries that are worth a thread: about 64k multiply-adds.
template <typename T>
int64_t grain_of(const Problem<T>& p) {
  const int64_t work = int64_t{4} * p.heads * p.samples() * std::max(p.width, 8);
  return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, work));
}

template <typename T>
void check_rows(const Problem<T>& p) {
  if (!p.row_splits) return;
  bool good = p.row_splits[0] == 0 && p.row_splits[p.queries] == p.rows;
  for (int64_t m = 0; m < p.queries; ++m) good = good && p.row_splits[m] <= p.row_splits[m + 1];
  STD_TORCH_CHECK(good, "ms_deform_attn_ragged: row_splits must ascend from 0 to the number of rows, ",
                  p.rows);
  for (int64_t r = 0; r < p.rows; ++r) good = good && p.row_value[r] >= 0 && p.row_value[r] < p.batches;
  STD_TORCH_CHECK(good, "ms_deform_attn_ragged: row_value must lie in [0, ", p.batches, ")");
}

// The rows of each value batch, ascending (a counting sort).
struct RowsByBatch {
  std::vector<int64_t> begin, rows, queries;

  template <typename T>
  explicit RowsByBatch(const Problem<T>& p) {
    if (!p.row_splits) return;
    begin.assign(p.batches + 1, 0);
    rows.resize(p.rows);
    queries.resize(p.rows);
    for (int64_t r = 0; r < p.rows; ++r) ++begin[p.row_value[r] + 1];
    for (int64_t b = 0; b < p.batches; ++b) begin[b + 1] += begin[b];
    std::vector<int64_t> next(begin.begin(), begin.end());
    for (int64_t m = 0; m < p.queries; ++m)
      for (int64_t r = p.row_splits[m]; r < p.row_splits[m + 1]; ++r) {
        const int64_t at = next[p.row_value[r]]++;
        rows[at] = r;
        queries[at] = m;
      }
  }

  template <typename T>
  RowRange of(const Problem<T>& p, int64_t batch) const {
    if (!p.row_splits) return {p.queries_per_batch, batch * p.queries_per_batch, nullptr, nullptr};
    return {begin[batch + 1] - begin[batch], 0, rows.data() + begin[batch], queries.data() + begin[batch]};
  }
};

template <typename T>
void run_value_backward(const Problem<T>& p, const Level* levels, const Gradients<T>& g) {
  const RowsByBatch by_batch(p);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = (threads + p.batches - 1) / p.batches;  // head groups of a batch
  const int heads = static_cast<int>((p.heads + std::min<int64_t>(wanted, p.heads) - 1) /
                                     std::min<int64_t>(wanted, p.heads));
  const int64_t groups = (p.heads + heads - 1) / heads;
  torch::stable::parallel_for(0, p.batches * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t batch = task / groups;
      const int first = static_cast<int>(task % groups) * heads;
      const int count = std::min(heads, p.heads - first);
      const RowRange rows = by_batch.of(p, batch);
      [&] { BEVKD2_CALL(T, value_backward, p, levels, g, batch, first, count, rows); }();
    }
  });
}

struct Cpu {
  template <typename T>
  static void forward(const Arguments& a, T* out, accumulate_t<T>* weights) {
    const Problem<T> p = make_problem<T>(a);
    check_rows(p);
    if (p.samples() == 0 || p.heads == 0) {
      std::fill_n(out, p.outputs() * p.heads * p.width, T(0));
      return;
    }
    torch::stable::parallel_for(0, p.outputs(), grain_of(p), [&](int64_t begin, int64_t end) {
      BEVKD2_CALL(T, forward_outputs, p, a.levels.data(), out, weights, begin, end);
    });
  }

  template <typename T>
  static void backward(const Arguments& a, const Gradients<T>& g) {
    const Problem<T> p = make_problem<T>(a);
    check_rows(p);
    if (p.samples() == 0 || p.heads == 0 || p.queries == 0) return;
    if (g.sampling())
      torch::stable::parallel_for(0, p.queries, grain_of(p), [&](int64_t begin, int64_t end) {
        BEVKD2_CALL(T, sampling_backward, p, a.levels.data(), g, begin, end);
      });
    if (g.value && p.batches > 0) run_value_backward(p, a.levels.data(), g);
  }
};

}  // namespace
}  // namespace bevkd2::msda

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) { bevkd2::msda::Ops<bevkd2::msda::Cpu>::register_all(m); }
