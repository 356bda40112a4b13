// The weighted squared distance on the CPU: the kernels of weighted_l2_cpu_kernels.h, for the instruction
// sets of core/cpu_dispatch.h. It is bound by memory: one pass reads student and teacher and writes the
// gradient. Chunks and the order of their sums depend on the shapes alone.
#include "weighted_l2.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../core/cpu_dispatch.h"
#include "../core/huge_pages.h"
#include "../core/parallel.h"

namespace bevkd2::distill::weighted_l2 {
namespace {

constexpr int64_t kChunk = 32768;  // entries of a task: 128 KiB of float, enough to outweigh starting it

#define BEVKD2_CPU_KERNELS "../distill_loss/weighted_l2_cpu_kernels.h"
#include "../core/cpu_kernels.h"

template <typename S, typename T, typename A>
double run_chunk(const Level& level, const Chunk& chunk, A factor) {
  const S* student = static_cast<const S*>(level.student);
  const T* teacher = static_cast<const T*>(level.teacher);
  BEVKD2_CALL(A, chunk_loss, level, student, teacher, chunk, factor);
}

// Adds the chunks of each sample in their order.
template <typename A>
void finish(const Problem<A>& p, const std::vector<Level>& levels, const std::vector<double>& partials) {
  for (size_t l = 0; l < levels.size(); ++l) {
    double total = 0;
    for (int64_t b = 0; b < p.samples; ++b) {
      double sum = 0;
      for (int64_t c = 0; c < levels[l].chunks; ++c)
        sum += partials[levels[l].first + b * levels[l].chunks + c];
      p.sums[l * p.samples + b] = static_cast<A>(sum);
      total += static_cast<double>(p.scale[l * p.samples + b]) * (p.norm ? std::sqrt(sum) : sum);
    }
    p.loss[l] = static_cast<A>(total);
  }
}

struct Cpu {
  template <typename S, typename T, typename A = accumulate_t<S, T>>
  static void run(const Problem<A>& p, const Tensor& /*like*/) {
    std::vector<Level> levels = p.levels;
    int64_t chunks = 0;
    for (Level& level : levels) {
      chunks = plan_chunks(level, p.samples, kChunk, chunks);
      if (level.grad) advise_huge_pages(level.grad, p.samples * level.rows * level.length * sizeof(S));
    }
    std::vector<double> partials(chunks);
    parallel_for(0, chunks, 2, [&](int64_t begin, int64_t end) {
      size_t l = 0;
      for (int64_t n = begin; n < end; ++n) {
        while (n >= levels[l].first + levels[l].chunks * p.samples) ++l;
        const Chunk chunk = chunk_of(levels[l], n);
        const A factor = 2 * p.scale[l * p.samples + chunk.sample];
        partials[n] = run_chunk<S, T>(levels[l], chunk, factor);
      }
    });
    if (p.loss) finish(p, levels, partials);
  }
};

}  // namespace
}  // namespace bevkd2::distill::weighted_l2

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  using namespace bevkd2::distill::weighted_l2;
  Ops<Cpu>::register_all(m);
}
