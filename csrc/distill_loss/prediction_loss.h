// Distances of class predictions, objects and background apart: what the CPU and CUDA kernels share, and the
// two ops in terms of one function that a device supplies (Backend::run).
//
// The loss of a group (objects, background) is factor / total * sum of D * w * l over its locations, where l
// is the distance of the two predictions at a location, w its weight and total the group's sum of weights (a
// total of zero counts as one). D, the guidance, is a second weight of the objects' locations: it has a
// gradient and does not count in total.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../core/macros.h"
#include "layout.h"

namespace bevkd2::distill::prediction {

enum class Distance { probabilities, logits, bernoulli, softmax };

// student, teacher: (B, Q, K), contiguous. weights, objects, guidance: (B, Q) or null; without objects all
// locations are background. losses: (2), objects and background; upstream: their gradient, or null for 1.
// Gradients are null where they are not wanted.
template <typename A>
struct Problem {
  const void *student, *teacher;
  void* grad_logits;
  A* grad_guidance;
  ScalarType student_dtype, teacher_dtype;
  const A* weights;
  const bool* objects;
  const A* guidance;
  const A* upstream;
  A* losses;
  int64_t batch, locations, classes;
  Distance distance;
  A temperature;
  double factors[2];  // of objects, of background

  BEVKD2_HOST_DEVICE bool is_object(int64_t at) const { return objects && objects[at]; }
  BEVKD2_HOST_DEVICE A weight(int64_t at) const { return weights ? weights[at] : A(1); }
  // Of a location of an object.
  BEVKD2_HOST_DEVICE A guidance_of(int64_t at) const { return guidance ? guidance[at] : A(1); }
};

// What the schemas list.
struct Arguments {
  Tensor student, teacher;
  std::optional<Tensor> weights, objects, guidance;
  int64_t distance;
  double temperature, object_weight, background_weight;
  bool need_logits, need_guidance;
};

template <typename Backend>
struct Ops {
  static constexpr const char* kOp = "prediction_loss";
  // Losses, and the gradients of the student's logits and of the guidance.
  using Outputs = std::tuple<Tensor, Tensor, Tensor>;

  static ScalarType check(const Arguments& a) {
    STD_TORCH_CHECK(a.student.dim() == 3 && a.teacher.dim() == 3 && a.student.size(0) == a.teacher.size(0) &&
                        a.student.size(1) == a.teacher.size(1) && a.student.size(2) == a.teacher.size(2),
                    "prediction_loss: logits must be (B, Q, K) of one shape");
    STD_TORCH_CHECK(a.distance >= 0 && a.distance <= 3, "prediction_loss: no such distance");
    ScalarType dtype = accumulate_dtype(a.student.scalar_type(), a.teacher.scalar_type());
    if (a.guidance) dtype = accumulate_dtype(dtype, a.guidance->scalar_type());
    check_placed(kOp, a.student, a.teacher, dtype);
    return dtype;
  }

  template <typename A>
  static Outputs run(const Arguments& a, const std::optional<Tensor>& upstream, ScalarType dtype) {
    const Tensor student = torch::stable::contiguous(a.student);
    const Tensor teacher = torch::stable::contiguous(a.teacher);
    Problem<A> p{};
    p.batch = student.size(0);
    p.locations = student.size(1);
    p.classes = student.size(2);
    const int64_t count = p.batch * p.locations;
    const bool need_guidance = a.need_guidance && a.guidance;
    const std::vector<int64_t> logits{p.batch, p.locations, p.classes}, locations{p.batch, p.locations},
        none{0};
    Tensor losses = torch::stable::new_empty(student, {2}, dtype);
    Tensor grad_logits = torch::stable::new_empty(student, a.need_logits ? logits : none);
    Tensor grad_guidance = torch::stable::new_empty(student, need_guidance ? locations : none, dtype);
    p.student = student.const_data_ptr();
    p.teacher = teacher.const_data_ptr();
    p.student_dtype = student.scalar_type();
    p.teacher_dtype = teacher.scalar_type();
    p.grad_logits = a.need_logits ? grad_logits.mutable_data_ptr() : nullptr;
    p.grad_guidance = need_guidance ? static_cast<A*>(grad_guidance.mutable_data_ptr()) : nullptr;
    p.weights = static_cast<const A*>(data_of(kOp, "weights", a.weights, count, dtype, a.student));
    p.objects =
        static_cast<const bool*>(data_of(kOp, "objects", a.objects, count, ScalarType::Bool, a.student));
    p.guidance = static_cast<const A*>(data_of(kOp, "guidance", a.guidance, count, dtype, a.student));
    p.upstream = static_cast<const A*>(data_of(kOp, "the upstream gradient", upstream, 2, dtype, a.student));
    p.losses = static_cast<A*>(losses.mutable_data_ptr());
    p.distance = static_cast<Distance>(a.distance);
    p.temperature = static_cast<A>(a.temperature);
    p.factors[0] = a.object_weight;
    p.factors[1] = a.background_weight;
    Backend::run(p, student);
    return {losses, grad_logits, grad_guidance};
  }

  static Outputs run(const Arguments& a, const std::optional<Tensor>& upstream) {
    const ScalarType dtype = check(a);
    return dispatch_accumulate(dtype, [&](auto zero) { return run<decltype(zero)>(a, upstream, dtype); });
  }

  static Outputs forward(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& weights,
                         const std::optional<Tensor>& objects, const std::optional<Tensor>& guidance,
                         int64_t distance, double temperature, double object_weight, double background_weight,
                         bool need_logits, bool need_guidance) {
    return run({student, teacher, weights, objects, guidance, distance, temperature, object_weight,
                background_weight, need_logits, need_guidance},
               std::nullopt);
  }

  static std::tuple<Tensor, Tensor> backward(const Tensor& grad_losses, const Tensor& student,
                                             const Tensor& teacher, const std::optional<Tensor>& weights,
                                             const std::optional<Tensor>& objects,
                                             const std::optional<Tensor>& guidance, int64_t distance,
                                             double temperature, double object_weight,
                                             double background_weight, bool need_logits, bool need_guidance) {
    const Outputs out = run({student, teacher, weights, objects, guidance, distance, temperature,
                             object_weight, background_weight, need_logits, need_guidance},
                            torch::stable::contiguous(grad_losses));
    return {std::get<1>(out), std::get<2>(out)};
  }

  template <typename Library>
  static void register_all(Library& m) {
    m.impl("prediction_loss", TORCH_BOX(&forward));
    m.impl("prediction_loss_backward", TORCH_BOX(&backward));
  }
};

}  // namespace bevkd2::distill::prediction
