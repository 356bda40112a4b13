// Distances of class predictions on the CPU: the kernels of prediction_loss_cpu_kernels.h, for the
// instruction sets of core/cpu_dispatch.h. Locations are summed in fixed blocks, and the blocks in their
// order.
#include "prediction_loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../core/cpu_dispatch.h"
#include "../core/huge_pages.h"
#include "../core/parallel.h"

namespace bevkd2::distill::prediction {
namespace {

struct Partial {
  double objects = 0, background = 0;
};

#define BEVKD2_CPU_KERNELS "../distill_loss/prediction_loss_cpu_kernels.h"
#include "../core/cpu_kernels.h"

template <typename A>
Partial run_weights(const Problem<A>& p, int64_t first, int64_t n) {
  BEVKD2_CALL(A, block_weights, p, first, n);
}

template <typename A>
Partial run_block(const Problem<A>& p, const A* coefficients, int64_t first, int64_t n, A* scratch) {
  BEVKD2_CALL(A, block_loss, p, coefficients, first, n, scratch);
}

// The sums over blocks of `step` locations, in their order: function(first, n) returns that of one block.
template <typename F>
Partial sum_blocks(int64_t count, int64_t step, const F& make_function) {
  std::vector<Partial> partials((count + step - 1) / step);
  parallel_for(0, static_cast<int64_t>(partials.size()), 1, [&](int64_t begin, int64_t end) {
    auto function = make_function();  // with buffers of this thread
    for (int64_t block = begin; block < end; ++block)
      partials[block] = function(block * step, std::min(step, count - block * step));
  });
  Partial sum;
  for (const Partial& partial : partials) {
    sum.objects += partial.objects;
    sum.background += partial.background;
  }
  return sum;
}

template <typename A>
Partial count_locations(const Problem<A>& p) {
  return sum_blocks(p.batch * p.locations, 8192,
                    [&] { return [&](int64_t first, int64_t n) { return run_weights(p, first, n); }; });
}

struct Cpu {
  template <typename A>
  static void run(const Problem<A>& p, const Tensor& /*student*/) {
    if (p.grad_logits)
      advise_huge_pages(p.grad_logits, p.batch * p.locations * p.classes * bytes_of(p.student_dtype));
    const Partial counted = count_locations(p);
    const double scales[2] = {p.factors[0] / (counted.objects > 0 ? counted.objects : 1),
                              p.factors[1] / (counted.background > 0 ? counted.background : 1)};
    const A coefficients[2] = {
        static_cast<A>(scales[0] * static_cast<double>(p.upstream ? p.upstream[0] : A(1))),
        static_cast<A>(scales[1] * static_cast<double>(p.upstream ? p.upstream[1] : A(1)))};
    // About 2,048 logits per block, so that its buffers stay in the first-level cache.
    const int64_t step = std::max<int64_t>(1, 2048 / std::max<int64_t>(1, p.classes));
    const Partial sums = sum_blocks(p.batch * p.locations, step, [&] {
      std::vector<A> scratch(4 * ((step * p.classes + 7) / 8 * 8) + step);
      return [&p, &coefficients, scratch](int64_t first, int64_t n) mutable {
        return run_block(p, coefficients, first, n, scratch.data());
      };
    });
    p.losses[0] = static_cast<A>(scales[0] * sums.objects);
    p.losses[1] = static_cast<A>(scales[1] * sums.background);
  }
};

}  // namespace
}  // namespace bevkd2::distill::prediction

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  using namespace bevkd2::distill::prediction;
  Ops<Cpu>::register_all(m);
}
