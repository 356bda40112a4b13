// Weighted squared distance on the CPU. Memory bound: a pass over student and teacher, and one that writes
// the gradient. Chunks and the order of their sums follow from the shapes alone.
#include "weighted_l2.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../core/cpu_dispatch.h"
#include "../core/huge_pages.h"

namespace bevkd2::distill {
namespace {

namespace plain {
using bevkd2::plain::Vec;
#include "weighted_l2_kernels.h"
}  // namespace plain

#if BEVKD2_HAS_AVX2
BEVKD2_BEGIN_AVX2
namespace avx2 {
using bevkd2::avx2::Vec;
#include "weighted_l2_kernels.h"
}  // namespace avx2
BEVKD2_END_AVX2
#endif

constexpr int64_t kChunk = 32768;  // entries a task: 128 KiB of float, which amortises starting it

template <typename S, typename T>
double run_chunk(const L2Level& level, const L2Chunk& chunk, wide_t<S, T> factor) {
#if BEVKD2_HAS_AVX2
  if constexpr (!std::is_same_v<wide_t<S, T>, double>)
    if (use_avx2()) return avx2::l2_chunk<S, T>(level, chunk, factor);
#endif
  return plain::l2_chunk<S, T>(level, chunk, factor);
}

struct Cpu {
  static void prepare(const Tensor& grad) {
    advise_huge_pages(grad.mutable_data_ptr(), static_cast<size_t>(grad.numel()) * grad.element_size());
  }

  template <typename S, typename T, typename A = wide_t<S, T>>
  static void run(const L2Arguments& a, std::vector<L2Level> levels, bool norm, A* loss, A* sums) {
    const A* scale = static_cast<const A*>(a.scale.const_data_ptr());
    int64_t chunks = 0;
    for (L2Level& level : levels) chunks = plan_chunks(level, a.samples(), kChunk, chunks);
    std::vector<double> partial(chunks);
    torch::stable::parallel_for(0, chunks, 2, [&](int64_t begin, int64_t end) {
      size_t l = 0;
      for (int64_t n = begin; n < end; ++n) {
        while (n >= levels[l].first + levels[l].chunks * a.samples()) ++l;
        const L2Chunk chunk = chunk_of(levels[l], n);
        const A factor = 2 * scale[l * a.samples() + chunk.sample];
        partial[n] = run_chunk<S, T>(levels[l], chunk, factor);
      }
    });
    if (loss) add_up(levels, a.samples(), partial, scale, norm, loss, sums);
  }

  template <typename A>
  static void add_up(const std::vector<L2Level>& levels, int64_t samples, const std::vector<double>& partial,
                     const A* scale, bool norm, A* loss, A* sums) {
    for (size_t l = 0; l < levels.size(); ++l) {
      double total = 0;
      for (int64_t b = 0; b < samples; ++b) {
        double sum = 0;
        for (int64_t c = 0; c < levels[l].chunks; ++c)
          sum += partial[levels[l].first + b * levels[l].chunks + c];
        sums[l * samples + b] = static_cast<A>(sum);
        total += static_cast<double>(scale[l * samples + b]) * (norm ? std::sqrt(sum) : sum);
      }
      loss[l] = static_cast<A>(total);
    }
  }
};

using Ops = L2Ops<Cpu>;

}  // namespace
}  // namespace bevkd2::distill

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  m.impl("weighted_l2", TORCH_BOX(&bevkd2::distill::Ops::forward));
  m.impl("weighted_l2_backward", TORCH_BOX(&bevkd2::distill::Ops::backward));
}
