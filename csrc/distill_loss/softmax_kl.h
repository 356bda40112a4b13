// KL divergence of two softmaxes, many of them at once: what the CPU and CUDA kernels share, and the two ops
// in terms of one function that a device supplies (Backend::run).
//
// A level is a (B, R, K) view: R softmaxes over K entries for each sample. Channel-wise distillation has
// channels as rows and positions as entries, pixel-wise distillation the other way round, and both views
// exist of NCHW and of channels-last features without a copy. So either the entries or the rows are
// adjacent in memory.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "layout.h"

namespace bevkd2::distill::softmax_kl {

// One level. `weights` is (B, R) of the accumulation type, or null for 1; `grad` is
// null where no gradient is wanted.
struct Level {
  Strided<const void> student, teacher;
  Strided<void> grad;
  const void* weights;
  int64_t batch, rows, entries;
  bool rows_adjacent;  // else the entries are
};

// totals: (L) normalisers on the device, or null for the number of a level's softmaxes. upstream: (L)
// gradients of the losses, or null for 1. Both are of the accumulation type. The loss of a level is factor /
// total * sum of weight * KL; a total of zero counts as one.
struct Problem {
  std::vector<Level> levels;
  const void* totals;
  const void* upstream;
  double factor;
  double temperature;
  ScalarType dtype;  // of the accumulation: Float or Double
};

struct Arguments {
  Tensors student, teacher, weights;
  std::optional<Tensor> totals;
  double factor, temperature;
};

template <typename Backend>
struct Ops {
  static Level make_level(const Tensor& student, const Tensor& teacher, const Tensor& weights,
                          ScalarType dtype) {
    STD_TORCH_CHECK(student.dim() == 3 && teacher.dim() == 3, "softmax_kl: levels must be (B, R, K)");
    for (int d = 0; d < 3; ++d)
      STD_TORCH_CHECK(student.size(d) == teacher.size(d), "softmax_kl: student and teacher differ in shape");
    check_placed("softmax_kl", student, teacher, dtype);
    Level level{};
    level.batch = student.size(0);
    level.rows = student.size(1);
    level.entries = student.size(2);
    level.rows_adjacent = !adjacent(student, 2) || (level.entries < 8 && adjacent(student, 1));
    if (weights.numel() > 0)
      level.weights = data_of("softmax_kl", "weights", weights, level.batch * level.rows, dtype, student);
    return level;
  }

  static Problem make_problem(const Arguments& a, const std::optional<Tensor>& upstream) {
    const size_t levels = a.student.size();
    STD_TORCH_CHECK(levels > 0 && levels == a.teacher.size() && levels == a.weights.size(),
                    "softmax_kl: the lists differ in length, or are empty");
    Problem p{};
    const int64_t count = static_cast<int64_t>(levels);
    p.dtype = ScalarType::Float;
    for (size_t l = 0; l < levels; ++l)
      if (accumulate_dtype(a.student[l].scalar_type(), a.teacher[l].scalar_type()) == ScalarType::Double)
        p.dtype = ScalarType::Double;
    p.totals = data_of("softmax_kl", "totals", a.totals, count, p.dtype, a.student[0]);
    p.upstream = data_of("softmax_kl", "grad_losses", upstream, count, p.dtype, a.student[0]);
    p.factor = a.factor;
    p.temperature = a.temperature;
    return p;
  }

  // Returns losses (L) and gradients; copies live until the kernels are launched.
  static std::tuple<Tensor, Tensors> run(const Arguments& a, bool need_grad,
                                         const std::optional<Tensor>& upstream) {
    Problem p = make_problem(a, upstream);
    Tensors kept, grads;
    std::vector<Writing> writing;
    for (size_t l = 0; l < a.student.size(); ++l) {
      Level level = make_level(a.student[l], a.teacher[l], a.weights[l], p.dtype);
      const int64_t last = level.rows_adjacent ? 1 : 2;
      kept.push_back(arranged(a.student[l], last));
      level.student = strided(kept.back());
      kept.push_back(arranged(a.teacher[l], last));
      level.teacher = strided(kept.back());
      if (need_grad) {
        writing.emplace_back(torch::stable::empty_like(a.student[l]), last);
        level.grad = strided_output(writing.back().target);
      }
      p.levels.push_back(level);
    }
    Tensor losses = torch::stable::new_empty(a.student[0], {static_cast<int64_t>(a.student.size())}, p.dtype);
    Backend::run(p, losses);
    for (Writing& w : writing) grads.push_back(w.finish());
    return {losses, grads};
  }

  static std::tuple<Tensor, Tensors> forward(const Tensors& student, const Tensors& teacher,
                                             const Tensors& weights, const std::optional<Tensor>& totals,
                                             double factor, double temperature, bool need_grad) {
    return run({student, teacher, weights, totals, factor, temperature}, need_grad, std::nullopt);
  }

  static Tensors backward(const Tensor& grad_losses, const Tensors& student, const Tensors& teacher,
                          const Tensors& weights, const std::optional<Tensor>& totals, double factor,
                          double temperature) {
    const Tensor upstream = torch::stable::contiguous(grad_losses);
    return std::get<1>(run({student, teacher, weights, totals, factor, temperature}, true, upstream));
  }

  template <typename Library>
  static void register_all(Library& m) {
    m.impl("softmax_kl", TORCH_BOX(&forward));
    m.impl("softmax_kl_backward", TORCH_BOX(&backward));
  }
};

}  // namespace bevkd2::distill::softmax_kl
