// The L2 distance of BEV responses (the mean absolute feature over channels): what the CPU and CUDA kernels
// share, and the two ops in terms of two functions that a device supplies (Backend::forward and
// Backend::backward).
//
// Embeddings are (B, N, C) views whose channels or whose cells are adjacent in memory, each its own way. The
// forward pass keeps, where a gradient is wanted, each cell's weight times its difference, and a factor per
// sample; the backward pass reads these and the signs of the student's features.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../core/macros.h"
#include "layout.h"

namespace bevkd2::distill::bev_response {

enum class Reduction { sum, cell, norm };  // "mean" is "cell": a cell has one entry

struct Embedding {
  Strided<const void> data;
  int64_t channels;
  bool channels_adjacent;  // else the cells are
};

// Pointers without a dtype are to the accumulation type. weights: (B, N), or null for 1.
// differences: (B, N) or null; scales: (B).
struct Forward {
  Embedding student, teacher;
  const void* weights;
  int64_t batch, cells;
  Reduction reduction;
  double factor;
  void *loss, *differences, *scales;
};

struct Backward {
  Embedding student;
  Strided<void> grad;
  int64_t batch, cells;
  const void *upstream, *differences, *scales;
};

// The loss, and the factor of each sample's weighted differences in its gradient.
template <typename A>
struct Totals {
  double squares = 0, counted = 0, norms = 0;

  BEVKD2_HOST_DEVICE double loss(Reduction reduction, int64_t batch, double factor) const {
    if (reduction == Reduction::cell) return factor * squares / (counted > 0 ? counted : 1);
    return factor * (reduction == Reduction::sum ? squares : norms) / (batch > 0 ? batch : 1);
  }
  BEVKD2_HOST_DEVICE A scale(Reduction reduction, int64_t batch, double factor, double norm) const {
    if (reduction == Reduction::cell) return static_cast<A>(2 * factor / (counted > 0 ? counted : 1));
    if (reduction == Reduction::sum) return static_cast<A>(2 * factor / batch);
    return static_cast<A>(norm > 0 ? factor / (norm * batch) : 0);
  }
};

inline Embedding make_embedding(const Tensor& t) {
  const bool channels_adjacent = adjacent(t, 2);
  return {strided(t), t.size(2), channels_adjacent};
}

template <typename Backend>
struct Ops {
  static Tensor readable(const Tensor& t) { return arranged(t, adjacent(t, 2) ? 2 : 1); }

  static std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& student, const Tensor& teacher,
                                                    const std::optional<Tensor>& weights, int64_t reduction,
                                                    double factor, bool need_grad) {
    STD_TORCH_CHECK(student.dim() == 3 && teacher.dim() == 3 && student.size(0) == teacher.size(0) &&
                        student.size(1) == teacher.size(1),
                    "bev_response_l2: embeddings must be (B, N, C) of the same B and N");
    const ScalarType dtype = accumulate_dtype(student.scalar_type(), teacher.scalar_type());
    check_placed("bev_response_l2", student, teacher, dtype);
    const int64_t batch = student.size(0), cells = student.size(1);
    STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, "bev_response_l2: no reduction ", reduction);
    const Tensor ours = readable(student), theirs = readable(teacher);
    Tensor loss = torch::stable::new_empty(student, {}, dtype);
    Tensor differences = torch::stable::new_empty(student, {need_grad ? batch : 0, cells}, dtype);
    Tensor scales = torch::stable::new_empty(student, {need_grad ? batch : 0}, dtype);
    Forward p{};
    p.student = make_embedding(ours);
    p.teacher = make_embedding(theirs);
    p.weights = data_of("bev_response_l2", "weights", weights, batch * cells, dtype, student);
    p.batch = batch;
    p.cells = cells;
    p.reduction = static_cast<Reduction>(reduction);
    p.factor = factor;
    p.loss = loss.mutable_data_ptr();
    p.differences = need_grad ? differences.mutable_data_ptr() : nullptr;
    p.scales = need_grad ? scales.mutable_data_ptr() : nullptr;
    dispatch_accumulate(dtype, [&](auto zero) { Backend::template forward<decltype(zero)>(p, student); });
    return {loss, differences, scales};
  }

  static Tensor backward(const Tensor& grad_loss, const Tensor& student, const Tensor& differences,
                         const Tensor& scales) {
    const ScalarType dtype = differences.scalar_type();
    constexpr const char* kOp = "bev_response_l2_backward";
    STD_TORCH_CHECK(student.dim() == 3, kOp, ": the student must be (B, N, C)");
    check_placed(kOp, student, differences, dtype);
    const Tensor ours = readable(student);
    Backward p{};
    p.student = make_embedding(ours);
    Writing writing(torch::stable::empty_like(student), p.student.channels_adjacent ? 2 : 1);
    p.grad = strided_output(writing.target);
    p.batch = student.size(0);
    p.cells = student.size(1);
    p.upstream = data_of(kOp, "grad_loss", grad_loss, 1, dtype, student);
    p.differences = data_of(kOp, "differences", differences, p.batch * p.cells, dtype, student);
    p.scales = data_of(kOp, "scales", scales, p.batch, dtype, student);
    dispatch_accumulate(dtype, [&](auto zero) { Backend::template backward<decltype(zero)>(p, student); });
    return writing.finish();
  }

  template <typename Library>
  static void register_all(Library& m) {
    m.impl("bev_response_l2", TORCH_BOX(&forward));
    m.impl("bev_response_l2_backward", TORCH_BOX(&backward));
  }
};

}  // namespace bevkd2::distill::bev_response
