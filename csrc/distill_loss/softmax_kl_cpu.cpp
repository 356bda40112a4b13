// KL divergence of softmaxes on the CPU: the kernels of softmax_kl_cpu_kernels.h, for the instruction sets of
// core/cpu_dispatch.h. The tasks, and with them the order of every sum, depend on the shapes alone.
#include "softmax_kl.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../core/cpu_dispatch.h"
#include "../core/huge_pages.h"
#include "../core/parallel.h"

namespace bevkd2::distill::softmax_kl {
namespace {

constexpr int kTile = 64;                  // softmaxes of a tile, where rows are adjacent
constexpr int kChunk = 16;                 // entries that a tile handles together
constexpr int kTileRows = 2 * kChunk + 8;  // scratch of a tile, in rows of kTile numbers

// Some rows of one sample of a level.
template <typename A>
struct Task {
  const Level* level;
  A inverse_temperature;
  A coefficient;  // scale, and the upstream gradient
  int64_t sample;
  A* scratch;

  A weight(int64_t row) const {
    return level->weights ? static_cast<const A*>(level->weights)[sample * level->rows + row] : A(1);
  }
};

#define BEVKD2_CPU_KERNELS "../distill_loss/softmax_kl_cpu_kernels.h"
#include "../core/cpu_kernels.h"

template <typename A>
double run_task(const Task<A>& task, int64_t first, int64_t last) {
  if (task.level->rows_adjacent) BEVKD2_CALL(A, rows_adjacent, task, first, last);
  BEVKD2_CALL(A, entries_adjacent, task, first, last);
}

// The loss of a level before its scale.
template <typename A>
double run_level(const Level& level, A inverse_temperature, A coefficient) {
  if (level.entries == 0 || level.rows == 0) return 0;
  // About 4,096 entries per task where a softmax is small, one softmax where it is large.
  const int64_t step = level.rows_adjacent ? kTile : std::max<int64_t>(1, 4096 / level.entries);
  const int64_t padded = (level.entries + 7) / 8 * 8;
  const int64_t scratch = level.rows_adjacent ? kTileRows * kTile : 2 * padded;
  const int64_t groups = (level.rows + step - 1) / step;
  std::vector<double> losses(level.batch * groups, 0.0);
  parallel_for(0, level.batch * groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> buffer(scratch);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % groups * step;
      const Task<A> rows{&level, inverse_temperature, coefficient, task / groups, buffer.data()};
      losses[task] = run_task(rows, first, std::min(first + step, level.rows));
    }
  });
  double sum = 0;
  for (const double loss : losses) sum += loss;
  return sum;
}

template <typename A>
void run_levels(const Problem& p, A* losses) {
  for (size_t l = 0; l < p.levels.size(); ++l) {
    const Level& level = p.levels[l];
    if (level.grad.data)
      advise_huge_pages(level.grad.data,
                        level.batch * level.rows * level.entries * bytes_of(level.grad.dtype));
    const double counted = p.totals ? static_cast<double>(static_cast<const A*>(p.totals)[l])
                                    : static_cast<double>(level.batch * level.rows);
    const double scale = p.factor / (counted > 0 ? counted : 1);
    const double upstream = p.upstream ? static_cast<double>(static_cast<const A*>(p.upstream)[l]) : 1;
    const A coefficient = static_cast<A>(scale * upstream);
    losses[l] = static_cast<A>(scale * run_level(level, static_cast<A>(1 / p.temperature), coefficient));
  }
}

struct Cpu {
  static void run(const Problem& p, Tensor& losses) {
    dispatch_accumulate(
        p.dtype, [&](auto zero) { run_levels(p, static_cast<decltype(zero)*>(losses.mutable_data_ptr())); });
  }
};

}  // namespace
}  // namespace bevkd2::distill::softmax_kl

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  using namespace bevkd2::distill::softmax_kl;
  Ops<Cpu>::register_all(m);
}
