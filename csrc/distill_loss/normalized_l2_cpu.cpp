// The distance of normalised features on the CPU: the kernels of normalized_l2_cpu_kernels.h, for the
// instruction sets of core/cpu_dispatch.h. A task is one channel of a level, whose three passes mostly read
// the cache.
#include "normalized_l2.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "../core/cpu_dispatch.h"
#include "../core/huge_pages.h"
#include "../core/parallel.h"

namespace bevkd2::distill::normalized_l2 {
namespace {

constexpr int64_t kBlock = 512;  // entries; a multiple of eight

#define BEVKD2_CPU_KERNELS "../distill_loss/normalized_l2_cpu_kernels.h"
#include "../core/cpu_kernels.h"

template <typename A>
double run_channel(const Level& level, int64_t channel, double epsilon, A coefficient, A* scratch) {
  BEVKD2_CALL(A, channel_loss, level, channel, epsilon, coefficient, scratch);
}

template <typename A>
void run_levels(const Problem& p, A* losses) {
  for (size_t l = 0; l < p.levels.size(); ++l) {
    const Level& level = p.levels[l];
    if (level.grad.data)
      advise_huge_pages(level.grad.data, level.entries() * level.channels * bytes_of(level.grad.dtype));
    const double share =
        p.factor / (static_cast<double>(level.entries()) * static_cast<double>(level.channels));
    const double upstream = p.upstream ? static_cast<double>(static_cast<const A*>(p.upstream)[l]) : 1;
    const A coefficient = static_cast<A>(share * upstream);
    std::vector<double> sums(level.channels);
    parallel_for(0, level.channels, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> scratch(3 * kBlock);
      for (int64_t channel = begin; channel < end; ++channel)
        sums[channel] = run_channel(level, channel, p.epsilon, coefficient, scratch.data());
    });
    double sum = 0;
    for (const double channel : sums) sum += channel;
    losses[l] = static_cast<A>(level.channels > 0 ? share / 2 * sum : 0);
  }
}

struct Cpu {
  static void run(const Problem& p, Tensor& losses) {
    dispatch_accumulate(
        p.dtype, [&](auto zero) { run_levels(p, static_cast<decltype(zero)*>(losses.mutable_data_ptr())); });
  }
};

}  // namespace
}  // namespace bevkd2::distill::normalized_l2

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  using namespace bevkd2::distill::normalized_l2;
  Ops<Cpu>::register_all(m);
}
