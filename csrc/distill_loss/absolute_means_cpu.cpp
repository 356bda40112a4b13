// Means of |x|^power on the CPU: the kernels of absolute_means_cpu_kernels.h, for the instruction sets of
// core/cpu_dispatch.h. A task is a tile; tiles depend on the shape alone.
#include "absolute_means.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "../core/cpu_dispatch.h"
#include "../core/huge_pages.h"
#include "../core/parallel.h"

namespace bevkd2::distill::absolute_means {
namespace {

constexpr int64_t kRows = 64, kColumns = 2048;  // of a tile

#define BEVKD2_CPU_KERNELS "../distill_loss/absolute_means_cpu_kernels.h"
#include "../core/cpu_kernels.h"

template <typename A, typename T>
void run_sums(const Forward<T>& p, const Tile& tile, A* rows, A* columns) {
  BEVKD2_CALL(A, sum_tile, p, tile, rows, columns);
}

template <typename A, typename T>
void run_gradient(const Backward<T>& p, const Tile& tile) {
  BEVKD2_CALL(A, write_tile, p, tile);
}

struct Cpu {
  template <typename T, typename A = accumulate_t<T>>
  static void forward(const Forward<T>& p, const Tensor& /*like*/) {
    const Tiling tiling(p.shape, kRows, kColumns);
    std::vector<A> row_sums(tiling.row_sums()), column_sums(tiling.column_sums());
    parallel_for(0, tiling.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const Tile tile = tiling.tile(n);
        run_sums<A>(p, tile, row_sums.data() + tiling.row_sum_at(tile),
                    column_sums.data() + tiling.column_sum_at(tile));
      }
    });
    const Shape& s = p.shape;
    for (int64_t i = 0; i < s.samples * s.rows; ++i)
      p.row_means[i] = mean_of(row_sums.data(), i, tiling.column_tiles, s.rows, s.columns);
    for (int64_t i = 0; i < s.samples * s.columns; ++i)
      p.column_means[i] = mean_of(column_sums.data(), i, tiling.row_tiles, s.columns, s.rows);
  }

  template <typename T, typename A = accumulate_t<T>>
  static void backward(const Backward<T>& p, const Tensor& /*like*/) {
    const Tiling tiling(p.shape, kRows, kColumns);
    if (!p.add) advise_huge_pages(p.grad.data, p.shape.samples * p.shape.rows * p.shape.columns * sizeof(T));
    parallel_for(0, tiling.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) run_gradient<A>(p, tiling.tile(n));
    });
  }
};

}  // namespace
}  // namespace bevkd2::distill::absolute_means

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  using namespace bevkd2::distill::absolute_means;
  Ops<Cpu>::register_all(m);
}
