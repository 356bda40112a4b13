// Squared distance of features that are normalised per channel: what the CPU and CUDA kernels share, and the
// two ops in terms of one function that a device supplies (Backend::run).
//
// With M = batch * pixels, and mean and (unbiased) standard deviation of a channel over these M entries:
//   x = (s - mean s) / (std s + eps)        y = (t - mean t) / (std t + eps)
//   loss = factor / (2 C M) * sum of (x - y)^2
//   d loss / d s = factor / (C M (std s + eps)) * ((1 - q) x - y),
//   q = (std s + eps) / ((M - 1) std s) * sum of (x - y) x      (0 where std s is 0)
#pragma once

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../core/macros.h"
#include "layout.h"

namespace bevkd2::distill::normalized_l2 {

// One level: (B, C, P), contiguous. grad is null where no gradient is wanted.
struct Level {
  Strided<const void> student, teacher;
  Strided<void> grad;
  int64_t batch, channels, pixels;

  BEVKD2_HOST_DEVICE int64_t entries() const { return batch * pixels; }
};

// upstream: (L) gradients of the losses, of the accumulation type, or null for 1.
struct Problem {
  std::vector<Level> levels;
  const void* upstream;
  double factor, epsilon;
  ScalarType dtype;  // of the accumulation: Float or Double
};

// Sums over the entries of a channel of (s - mean s)^2, (t - mean t)^2 and their product.
struct Moments {
  double student = 0, teacher = 0, product = 0;
};

// What the pass that writes gradients needs of a channel.
template <typename A>
struct Normalizer {
  A inverse_s, inverse_t;  // of the deviations plus epsilon
  A keep;                  // 1 - q: about epsilon / std for a constant teacher, so taken in double
};

template <typename A>
BEVKD2_HOST_DEVICE Normalizer<A> normalizer_of(const Moments& m, double entries, double epsilon) {
  const double deviation = sqrt(m.student / (entries - 1));
  const double a = deviation + epsilon, b = sqrt(m.teacher / (entries - 1)) + epsilon;
  const double along = m.student / (a * a) - m.product / (a * b);  // sum of (x - y) x
  const double pull = deviation > 0 ? a / ((entries - 1) * deviation) * along : 0;
  return {static_cast<A>(1 / a), static_cast<A>(1 / b), static_cast<A>(1 - pull)};
}

template <typename Backend>
struct Ops {
  static constexpr const char* kOp = "normalized_l2";

  static Level make_level(const Tensor& student, const Tensor& teacher, ScalarType dtype) {
    STD_TORCH_CHECK(student.dim() == 3 && teacher.dim() == 3, "normalized_l2: levels must be (B, C, P)");
    for (int d = 0; d < 3; ++d)
      STD_TORCH_CHECK(student.size(d) == teacher.size(d),
                      "normalized_l2: student and teacher differ in shape");
    check_placed(kOp, student, teacher, dtype);
    Level level{};
    level.batch = student.size(0);
    level.channels = student.size(1);
    level.pixels = student.size(2);
    STD_TORCH_CHECK(level.entries() > 1, "normalized_l2: a channel needs two entries for its deviation");
    return level;
  }

  static ScalarType accumulation(const Tensors& student, const Tensors& teacher) {
    ScalarType dtype = ScalarType::Float;
    for (size_t l = 0; l < student.size(); ++l)
      dtype = accumulate_dtype(dtype, accumulate_dtype(student[l].scalar_type(), teacher[l].scalar_type()));
    return dtype;
  }

  // Returns losses (L) and gradients; copies live until the kernels are launched.
  static std::tuple<Tensor, Tensors> run(const Tensors& student, const Tensors& teacher, double factor,
                                         double epsilon, bool need_grad,
                                         const std::optional<Tensor>& upstream) {
    STD_TORCH_CHECK(!student.empty() && student.size() == teacher.size(),
                    "normalized_l2: the lists differ in length, or are empty");
    const int64_t count = static_cast<int64_t>(student.size());
    Problem p{};
    p.dtype = accumulation(student, teacher);
    p.upstream = data_of(kOp, "grad_losses", upstream, count, p.dtype, student[0]);
    p.factor = factor;
    p.epsilon = epsilon;
    Tensors kept, grads;
    std::vector<Writing> writing;
    for (size_t l = 0; l < student.size(); ++l) {
      Level level = make_level(student[l], teacher[l], p.dtype);
      kept.push_back(arranged(student[l], 2));
      level.student = strided(kept.back());
      kept.push_back(arranged(teacher[l], 2));
      level.teacher = strided(kept.back());
      if (need_grad) {
        writing.emplace_back(torch::stable::empty_like(student[l]), 2);
        level.grad = strided_output(writing.back().target);
      }
      p.levels.push_back(level);
    }
    Tensor losses = torch::stable::new_empty(student[0], {count}, p.dtype);
    Backend::run(p, losses);
    for (Writing& w : writing) grads.push_back(w.finish());
    return {losses, grads};
  }

  static std::tuple<Tensor, Tensors> forward(const Tensors& student, const Tensors& teacher, double factor,
                                             double epsilon, bool need_grad) {
    return run(student, teacher, factor, epsilon, need_grad, std::nullopt);
  }

  static Tensors backward(const Tensor& grad_losses, const Tensors& student, const Tensors& teacher,
                          double factor, double epsilon) {
    return std::get<1>(run(student, teacher, factor, epsilon, true, torch::stable::contiguous(grad_losses)));
  }

  template <typename Library>
  static void register_all(Library& m) {
    m.impl("normalized_l2", TORCH_BOX(&forward));
    m.impl("normalized_l2_backward", TORCH_BOX(&backward));
  }
};

}  // namespace bevkd2::distill::normalized_l2
