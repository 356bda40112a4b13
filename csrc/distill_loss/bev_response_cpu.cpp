// BEV responses on the CPU: the kernels of bev_response_cpu_kernels.h, for the instruction sets of
// core/cpu_dispatch.h. Cells are summed in fixed groups, and the groups in their order.
#include "bev_response.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../core/cpu_dispatch.h"
#include "../core/huge_pages.h"
#include "../core/parallel.h"

namespace bevkd2::distill::bev_response {
namespace {

constexpr int64_t kCells = 512;  // per task

struct Partial {
  double squares = 0, counted = 0;
};

#define BEVKD2_CPU_KERNELS "../distill_loss/bev_response_cpu_kernels.h"
#include "../core/cpu_kernels.h"

// Calls function(sample, first, n) for groups of cells; a task is one group.
template <typename F>
void for_groups(int64_t batch, int64_t cells, const F& function) {
  const int64_t groups = (cells + kCells - 1) / kCells;
  parallel_for(0, batch * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % groups * kCells;
      function(task / groups, first, std::min(kCells, cells - first));
    }
  });
}

template <typename A>
Partial run_forward(const Forward& p, int64_t sample, int64_t first, int64_t n) {
  BEVKD2_CALL(A, forward_cells, p, sample, first, n);
}

template <typename A>
void run_backward(const Backward& p, int64_t sample, int64_t first, int64_t n) {
  BEVKD2_CALL(A, backward_cells, p, sample, first, n);
}

struct Cpu {
  template <typename A>
  static void forward(const Forward& p, const Tensor& /*student*/) {
    const int64_t groups = (p.cells + kCells - 1) / kCells;
    std::vector<Partial> partials(p.batch * groups);
    for_groups(p.batch, p.cells, [&](int64_t sample, int64_t first, int64_t n) {
      partials[sample * groups + first / kCells] = run_forward<A>(p, sample, first, n);
    });
    Totals<A> totals;
    std::vector<double> norms(p.batch);
    for (int64_t b = 0; b < p.batch; ++b) {
      double squares = 0;
      for (int64_t g = 0; g < groups; ++g) {
        squares += partials[b * groups + g].squares;
        totals.counted += partials[b * groups + g].counted;
      }
      norms[b] = std::sqrt(squares);
      totals.squares += squares;
      totals.norms += norms[b];
    }
    *static_cast<A*>(p.loss) = static_cast<A>(totals.loss(p.reduction, p.batch, p.factor));
    for (int64_t b = 0; p.scales && b < p.batch; ++b)
      static_cast<A*>(p.scales)[b] = totals.scale(p.reduction, p.batch, p.factor, norms[b]);
  }

  template <typename A>
  static void backward(const Backward& p, const Tensor& /*student*/) {
    advise_huge_pages(p.grad.data, p.batch * p.cells * p.student.channels * bytes_of(p.grad.dtype));
    for_groups(p.batch, p.cells,
               [&](int64_t sample, int64_t first, int64_t n) { run_backward<A>(p, sample, first, n); });
  }
};

}  // namespace
}  // namespace bevkd2::distill::bev_response

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  using namespace bevkd2::distill::bev_response;
  Ops<Cpu>::register_all(m);
}
