// Distances of class predictions, objects and background apart, with depth-guided weights: what the CPU and
// CUDA kernels share, and the two ops in terms of one function that a device supplies (Backend::run).
//
// The loss of a group (objects, background) is factor / total * sum of D * w * l over its locations, where l
// is the distance of the two predictions at a location, w its weight and total the group's sum of weights (a
// total of zero counts as one). D, the depth-guided weight, is one outside objects.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../core/macros.h"
#include "layout.h"

namespace bevkd2::distill::prediction {

enum class Distance { probabilities, logits, bernoulli, softmax };
enum class Rho { off, exponential, linear };

// D = phi(|tau(d_s) - tau(d_t)|) * rho(tau(d_gt)), tau(d) = d / max_depth limited to 0..1, phi(x) = slope * x
// + offset. Depths are (B, Q) of the computing type; null pointers leave phi or rho out. In frozen samples
// phi is its offset.
template <typename A>
struct Guidance {
  const A *student, *teacher, *truth, *max_depth;
  const bool* frozen;
  Rho rho;
  A slope, offset;
};

template <typename A>
struct Weight {
  A value;
  A slope;  // its derivative by the student's depth
};

template <typename A>
BEVKD2_HOST_DEVICE A limited(A x) {
  return x < A(0) ? A(0) : (x > A(1) ? A(1) : x);
}

template <typename A>
BEVKD2_HOST_DEVICE Weight<A> guidance_weight(const Guidance<A>& g, int64_t at, int64_t sample) {
  Weight<A> weight{A(1), A(0)};
  if (g.student) {
    weight.value = g.offset;
    if (!(g.frozen && g.frozen[sample])) {
      const A ours = g.student[at] / *g.max_depth;
      const A gap = limited(ours) - limited(g.teacher[at] / *g.max_depth);
      weight.value = g.slope * (gap < A(0) ? -gap : gap) + g.offset;
      if (ours >= A(0) && ours <= A(1) && gap != A(0))
        weight.slope = (gap < A(0) ? -g.slope : g.slope) / *g.max_depth;
    }
  }
  if (g.truth && g.rho != Rho::off) {
    const A far = limited(g.truth[at] / *g.max_depth);
    const A rho = g.rho == Rho::exponential ? std::exp(far) : far + A(1);
    weight.value *= rho;
    weight.slope *= rho;
  }
  return weight;
}

// student, teacher: (B, Q, K), contiguous. weights: (B, Q) or null; objects: (B, Q) or null, where all is
// background. losses: (2), objects and background; upstream: its gradient, or null for one. Gradients: null
// where not asked for.
template <typename A>
struct Problem {
  const void *student, *teacher;
  void* grad_logits;
  A* grad_depth;
  ScalarType student_dtype, teacher_dtype;
  const A* weights;
  const bool* objects;
  Guidance<A> guidance;
  const A* upstream;
  A* losses;
  int64_t batch, locations, classes;
  Distance distance;
  A temperature;
  double factors[2];  // of objects, of background

  BEVKD2_HOST_DEVICE bool is_object(int64_t at) const { return objects && objects[at]; }
  BEVKD2_HOST_DEVICE A weight(int64_t at) const { return weights ? weights[at] : A(1); }
};

// What the schema lists.
struct Arguments {
  Tensor student, teacher;
  std::optional<Tensor> weights, objects, student_depth, teacher_depth, true_depth, max_depth, frozen;
  int64_t distance, rho;
  double temperature, slope, offset, object_weight, background_weight;
};

template <typename Backend>
struct Ops {
  using Outputs = std::tuple<Tensor, Tensor, Tensor>;
  static constexpr const char* kOp = "prediction_loss";

  template <typename A>
  static Guidance<A> make_guidance(const Arguments& a, int64_t batch, int64_t count, ScalarType dtype) {
    Guidance<A> g{};
    g.student =
        static_cast<const A*>(data_of(kOp, "student_depth", a.student_depth, count, dtype, a.student));
    g.teacher =
        static_cast<const A*>(data_of(kOp, "teacher_depth", a.teacher_depth, count, dtype, a.student));
    g.truth = static_cast<const A*>(data_of(kOp, "true_depth", a.true_depth, count, dtype, a.student));
    g.max_depth = static_cast<const A*>(data_of(kOp, "max_depth", a.max_depth, 1, dtype, a.student));
    g.frozen = static_cast<const bool*>(data_of(kOp, "frozen", a.frozen, batch, ScalarType::Bool, a.student));
    STD_TORCH_CHECK(!g.student == !g.teacher && (g.max_depth || (!g.student && !g.truth)),
                    "prediction_loss: depths come in pairs and with max_depth");
    g.rho = static_cast<Rho>(a.rho);
    g.slope = static_cast<A>(a.slope);
    g.offset = static_cast<A>(a.offset);
    return g;
  }

  template <typename A>
  static Outputs run(const Arguments& a, bool need_logits, bool need_depth,
                     const std::optional<Tensor>& upstream, ScalarType dtype) {
    const Tensor student = torch::stable::contiguous(a.student);
    const Tensor teacher = torch::stable::contiguous(a.teacher);
    Problem<A> p{};
    p.batch = student.size(0);
    p.locations = student.size(1);
    p.classes = student.size(2);
    const int64_t count = p.batch * p.locations;
    need_depth = need_depth && a.student_depth;
    Tensor losses = torch::stable::new_empty(student, {2}, dtype);
    const std::vector<int64_t> all{p.batch, p.locations, p.classes}, depths{p.batch, p.locations}, none{0};
    Tensor grad_logits = torch::stable::new_empty(student, need_logits ? all : none);
    Tensor grad_depth = torch::stable::new_empty(student, need_depth ? depths : none, dtype);
    p.student = student.const_data_ptr();
    p.teacher = teacher.const_data_ptr();
    p.student_dtype = student.scalar_type();
    p.teacher_dtype = teacher.scalar_type();
    p.grad_logits = need_logits ? grad_logits.mutable_data_ptr() : nullptr;
    p.grad_depth = need_depth ? static_cast<A*>(grad_depth.mutable_data_ptr()) : nullptr;
    p.weights = static_cast<const A*>(data_of(kOp, "weights", a.weights, count, dtype, a.student));
    p.objects =
        static_cast<const bool*>(data_of(kOp, "objects", a.objects, count, ScalarType::Bool, a.student));
    p.guidance = make_guidance<A>(a, p.batch, count, dtype);
    p.upstream = static_cast<const A*>(data_of(kOp, "the upstream gradient", upstream, 2, dtype, a.student));
    p.losses = static_cast<A*>(losses.mutable_data_ptr());
    p.distance = static_cast<Distance>(a.distance);
    p.temperature = static_cast<A>(a.temperature);
    p.factors[0] = a.object_weight;
    p.factors[1] = a.background_weight;
    Backend::run(p, student);
    return {losses, grad_logits, grad_depth};
  }

  static Outputs checked(const Arguments& a, bool need_logits, bool need_depth,
                         const std::optional<Tensor>& upstream) {
    STD_TORCH_CHECK(a.student.dim() == 3 && a.teacher.dim() == 3 && a.student.size(0) == a.teacher.size(0) &&
                        a.student.size(1) == a.teacher.size(1) && a.student.size(2) == a.teacher.size(2),
                    "prediction_loss: logits must be (B, Q, K) of one shape");
    STD_TORCH_CHECK(a.distance >= 0 && a.distance <= 3 && a.rho >= 0 && a.rho <= 2,
                    "prediction_loss: no such distance or rho");
    ScalarType dtype = wide_dtype(a.student.scalar_type(), a.teacher.scalar_type());
    if (a.student_depth) dtype = wide_dtype(dtype, a.student_depth->scalar_type());
    check_placed("prediction_loss", a.student, a.teacher, dtype);
    if (dtype == ScalarType::Double) return run<double>(a, need_logits, need_depth, upstream, dtype);
    return run<float>(a, need_logits, need_depth, upstream, dtype);
  }

  static Outputs forward(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& weights,
                         const std::optional<Tensor>& objects, const std::optional<Tensor>& student_depth,
                         const std::optional<Tensor>& teacher_depth, const std::optional<Tensor>& true_depth,
                         const std::optional<Tensor>& max_depth, const std::optional<Tensor>& frozen,
                         int64_t distance, int64_t rho, double temperature, double slope, double offset,
                         double object_weight, double background_weight, bool need_logits, bool need_depth) {
    return checked({student, teacher, weights, objects, student_depth, teacher_depth, true_depth, max_depth,
                    frozen, distance, rho, temperature, slope, offset, object_weight, background_weight},
                   need_logits, need_depth, std::nullopt);
  }

  static std::tuple<Tensor, Tensor> backward(
      const Tensor& grad_losses, const Tensor& student, const Tensor& teacher,
      const std::optional<Tensor>& weights, const std::optional<Tensor>& objects,
      const std::optional<Tensor>& student_depth, const std::optional<Tensor>& teacher_depth,
      const std::optional<Tensor>& true_depth, const std::optional<Tensor>& max_depth,
      const std::optional<Tensor>& frozen, int64_t distance, int64_t rho, double temperature, double slope,
      double offset, double object_weight, double background_weight, bool need_logits, bool need_depth) {
    const Tensor upstream = torch::stable::contiguous(grad_losses);
    const Outputs out =
        checked({student, teacher, weights, objects, student_depth, teacher_depth, true_depth, max_depth,
                 frozen, distance, rho, temperature, slope, offset, object_weight, background_weight},
                need_logits, need_depth, upstream);
    return {std::get<1>(out), std::get<2>(out)};
  }

  template <typename Library>
  static void register_all(Library& m) {
    m.impl("prediction_loss", TORCH_BOX(&forward));
    m.impl("prediction_loss_backward", TORCH_BOX(&backward));
  }
};

}  // namespace bevkd2::distill::prediction
