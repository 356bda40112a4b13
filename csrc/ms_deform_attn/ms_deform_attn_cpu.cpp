// Multi-scale deformable attention on the CPU: the kernels of ms_deform_attn_cpu_kernels.h, for the
// instruction sets of core/cpu_dispatch.h.
#include "ms_deform_attn.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "../core/cpu_dispatch.h"
#include "../core/huge_pages.h"
#include "ms_deform_attn_cpu_order.h"
#include "ms_deform_attn_cpu_plan.h"
#include "ms_deform_attn_cpu_tasks.h"

#if defined(__GNUC__)
#define BEVKD2_ALWAYS_INLINE __attribute__((always_inline)) inline
#else
#define BEVKD2_ALWAYS_INLINE inline
#endif

namespace bevkd2::msda {
namespace {

#define BEVKD2_CPU_KERNELS "../ms_deform_attn/ms_deform_attn_cpu_kernels.h"
#define BEVKD2_CPU_KERNELS_AVX512
#include "../core/cpu_kernels.h"

// Narrower heads leave a part of each register empty; width 8 is up to 1.3 times as fast with AVX2.
constexpr int kLeastAvx512Width = 16;

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

// The number of threads, for at least 64k multiply-adds each.
template <typename T>
int64_t threads_for(const Problem<T>& p) {
  const double work = 4.0 * static_cast<double>(p.rows) * p.heads * p.samples() * std::max(p.width, 8);
  return std::clamp<int64_t>(static_cast<int64_t>(work / 65536), 1, torch::stable::get_num_threads());
}

// Tasks over queries: several per thread, so that threads end together; all heads of a query in one task,
// since their pixels are adjacent in memory.
Plan plan_queries(const std::vector<int64_t>& order, int heads, int64_t threads) {
  const int64_t tasks = threads > 1 ? 8 * threads : 1;
  const auto queries = static_cast<int64_t>(order.size());
  return {order.data(), queries, (queries + tasks - 1) / tasks, 0, heads, 1};
}

void fill_zero(void* to, size_t bytes) {
  constexpr size_t kPart = size_t{1} << 22;
  advise_huge_pages(to, bytes);
  const auto parts = static_cast<int64_t>((bytes + kPart - 1) / kPart);
  run_tasks(parts, torch::stable::get_num_threads(), [&](Tasks& tasks) {
    for (int64_t part = tasks.take(); part >= 0; part = tasks.take()) {
      const size_t begin = static_cast<size_t>(part) * kPart;
      std::memset(static_cast<char*>(to) + begin, 0, std::min(kPart, bytes - begin));
    }
  });
}

template <typename T>
void run_backward(const Problem<T>& p, const Level* levels, const Gradients<T>& g, bool sampling, bool value,
                  const Plan& plan, int64_t threads) {
  run_tasks(plan.tasks(), threads, [&](Tasks& tasks) {
    if (p.width < kLeastAvx512Width)
      BEVKD2_CALL(T, backward_tasks, p, levels, g, sampling, value, plan, tasks);
    BEVKD2_CALL_AVX512(T, backward_tasks, p, levels, g, sampling, value, plan, tasks);
  });
}

// A task that owns some heads of a value batch (of all batches in the ragged op) can compute every gradient
// in one pass. With fewer such tasks than threads, or where the references' gradients sum over heads, the
// gradients of points and of value are two passes.
template <typename T>
void plan_backward(const Problem<T>& p, const std::vector<Level>& all_levels, const Gradients<T>& g) {
  const Level* levels = all_levels.data();
  const std::vector<int64_t> order =
      order_by_cell(p, all_levels, p.queries, [](int64_t query) { return query; });
  const int64_t threads = threads_for(p);
  const int64_t parts = p.row_splits ? 1 : p.batches;
  const int64_t groups = (threads + parts - 1) / parts;
  const bool together = g.value && g.sampling() && (g.references ? groups == 1 : groups <= p.heads);
  if (g.sampling() && !together)
    run_backward(p, levels, g, true, false, plan_queries(order, p.heads, threads), threads);
  if (!g.value) return;
  const bool by_batch = p.row_splits && groups > p.heads;
  const int heads = heads_of_task(p.heads, p.heads / std::min<int64_t>(groups, p.heads));
  const Plan plan{order.data(), p.queries,      p.queries / parts, by_batch ? p.batches : 0,
                  heads,        p.heads / heads};
  run_backward(p, levels, g, together, true, plan, threads);
}

struct Cpu {
  template <typename T>
  static void forward(const Arguments& a, T* out, accumulate_t<T>* weights) {
    const Problem<T> p = make_problem<T>(a);
    check_rows(p);
    const int64_t outputs = p.outputs();
    const auto bytes = static_cast<size_t>(outputs * p.pixel_stride()) * sizeof(T);
    if (p.samples() == 0 || p.heads == 0 || outputs == 0) return fill_zero(out, bytes);
    advise_huge_pages(out, bytes);
    const int64_t threads = threads_for(p);
    const std::vector<int64_t> order =
        order_by_cell(p, a.levels, outputs, [&](int64_t output) { return p.query_of(output, 0); });
    const Plan plan = plan_queries(order, p.heads, threads);
    run_tasks(plan.tasks(), threads, [&](Tasks& tasks) {
      if (p.width < kLeastAvx512Width)
        BEVKD2_CALL(T, forward_tasks, p, a.levels.data(), out, weights, plan, tasks);
      BEVKD2_CALL_AVX512(T, forward_tasks, p, a.levels.data(), out, weights, plan, tasks);
    });
  }

  template <typename T>
  static void backward(const Arguments& a, const Gradients<T>& g) {
    using A = accumulate_t<T>;
    const Problem<T> p = make_problem<T>(a);
    check_rows(p);
    if (g.value) fill_zero(g.value, static_cast<size_t>(p.batches * p.batch_stride()) * sizeof(A));
    if (p.samples() == 0 || p.heads == 0 || p.queries == 0) {
      if (g.references) std::fill_n(g.references, p.rows * p.rule.count * p.rule.dims, A(0));
      return;
    }
    if (g.offsets) advise_huge_pages(g.offsets, static_cast<size_t>(a.offsets.numel()) * sizeof(A));
    if (g.logits) advise_huge_pages(g.logits, static_cast<size_t>(a.logits.numel()) * sizeof(A));
    plan_backward(p, a.levels, g);
  }
};

}  // namespace
}  // namespace bevkd2::msda

STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m) {
  using namespace bevkd2::msda;
  Ops<Cpu>::register_all(m);
}
