// The six ops of multi-scale deformable attention in terms of what a device supplies, Backend::forward and
// Backend::backward: from tensors to a Problem and back. backward writes every number of each gradient that
// is wanted. Shapes are checked in Python, with messages for users; the checks here are those that keep a
// kernel from reading outside its tensors.
#pragma once

#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "ms_deform_attn_problem.h"

namespace bevkd2::msda {

using Ints = std::vector<int64_t>;

// The tensors of one call, contiguous. `logits` are plain attention weights where `softmax` is false.
struct Arguments {
  Tensor value;
  std::vector<Level> levels;
  std::optional<Tensor> references;
  Tensor offsets;
  Tensor logits;
  std::optional<Tensor> row_splits;
  std::optional<Tensor> row_value;
  bool pillar = false;
  bool softmax = true;
  int64_t queues = 1;
};

struct Needs {
  bool value, references, offsets, logits, deterministic;
};

inline std::vector<Level> make_levels(const Tensor& value, const Ints& shapes, const Ints& starts) {
  STD_TORCH_CHECK(shapes.size() % 2 == 0 && starts.size() * 2 == shapes.size(),
                  "ms_deform_attn: spatial_shapes must hold h, w of each level");
  STD_TORCH_CHECK(value.size(1) <= std::numeric_limits<int32_t>::max(),
                  "ms_deform_attn: more than 2^31 pixels");
  std::vector<Level> levels;
  for (size_t l = 0; l < starts.size(); ++l) {
    const int64_t h = shapes[2 * l], w = shapes[2 * l + 1], start = starts[l];
    STD_TORCH_CHECK(h >= 1 && w >= 1 && start >= 0 && h <= value.size(1) && w <= value.size(1) &&
                        start + h * w <= value.size(1),
                    "ms_deform_attn: level ", l, " (", h, " x ", w, " from ", start, ") exceeds value's ",
                    value.size(1), " pixels");
    levels.push_back({static_cast<int>(h), static_cast<int>(w), static_cast<int>(start)});
  }
  return levels;
}

inline Ints dense_starts(const Ints& shapes) {
  Ints starts;
  int64_t next = 0;
  for (size_t l = 0; 2 * l + 1 < shapes.size(); ++l) {
    starts.push_back(next);
    next += shapes[2 * l] * shapes[2 * l + 1];
  }
  return starts;
}

inline void check_coordinates(const Tensor& value, const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == accumulate_dtype(value.scalar_type()), "ms_deform_attn: ", name,
                  " must be float64 where value is, else float32");
  STD_TORCH_CHECK(t.is_cuda() == value.is_cuda() && t.get_device_index() == value.get_device_index(),
                  "ms_deform_attn: ", name, " is on another device than value");
}

// References are (B, Q, R, 2 or 4), or (rows, R, 2) in the ragged op; offsets' leading dimensions are checked
// before.
inline void check_references(const Arguments& a) {
  const Tensor& references = *a.references;
  const int64_t dim = references.dim(), lead = a.logits.dim() - 3;
  const bool ragged = a.row_splits.has_value();
  bool good = dim == lead + 2 && references.size(dim - 2) >= 1;
  if (good && ragged) good = references.size(0) == a.row_value->numel();
  if (good && !ragged)
    good = references.size(0) == a.logits.size(0) && references.size(1) == a.logits.size(1);
  if (good) {
    const int64_t count = references.size(dim - 2), dims = references.size(dim - 1);
    const bool one_a_level = count == 1 || count == static_cast<int64_t>(a.levels.size());
    good = dims == 2 || (dims == 4 && !a.pillar);
    good = good && (a.pillar || one_a_level);
  }
  STD_TORCH_CHECK(good, "ms_deform_attn: reference_points do not fit attention_logits and the levels");
}

inline Arguments make_arguments(const Tensor& value, const Ints& shapes, const Ints& starts,
                                const std::optional<Tensor>& references, const Tensor& offsets,
                                const Tensor& logits) {
  using torch::stable::contiguous;
  STD_TORCH_CHECK(value.dim() == 4, "ms_deform_attn: value must be (B, S, H, D)");
  check_coordinates(value, offsets, "sampling_offsets");
  check_coordinates(value, logits, "attention_weights");
  Arguments a{contiguous(value),  make_levels(value, shapes, starts),
              std::nullopt,       contiguous(offsets),
              contiguous(logits), std::nullopt,
              std::nullopt};
  if (references) {
    check_coordinates(value, *references, "reference_points");
    a.references = contiguous(*references);
  }
  const int64_t dim = a.logits.dim();
  STD_TORCH_CHECK(
      dim >= 4 && dim <= 5 && a.offsets.dim() == dim + 1 && a.offsets.numel() == 2 * a.logits.numel() &&
          a.logits.size(dim - 3) == value.size(2) &&
          a.logits.size(dim - 2) == static_cast<int64_t>(a.levels.size()),
      "ms_deform_attn: sampling_offsets (.., H, L, P, 2) and attention_weights (.., H, L, P) do not fit");
  STD_TORCH_CHECK(dim == 4 || a.logits.size(0) == value.size(0),
                  "ms_deform_attn: value and attention_weights have different batch sizes");
  return a;
}

// Queries of all batches together: logits is (B, Q, H, L, P), or (M, H, L, P) in the ragged op.
inline int64_t queries_of(const Arguments& a) {
  return a.row_splits ? a.logits.size(0) : a.logits.size(0) * a.logits.size(1);
}

template <typename T>
Problem<T> make_problem(const Arguments& a) {
  using A = accumulate_t<T>;
  const int64_t dim = a.logits.dim();
  Problem<T> p{};
  p.batches = a.value.size(0);
  p.pixels = a.value.size(1);
  p.heads = static_cast<int>(a.value.size(2));
  p.width = static_cast<int>(a.value.size(3));
  p.levels = static_cast<int>(a.levels.size());
  p.points = static_cast<int>(a.logits.size(dim - 1));
  p.queries = queries_of(a);
  p.queries_per_batch = a.row_splits ? 1 : a.logits.size(1);
  p.rows = a.row_value ? a.row_value->numel() : p.queries;
  p.queues = static_cast<int>(a.queues);
  p.softmax = a.softmax;
  if (a.references) {
    const int64_t ref_dim = a.references->dim();
    p.rule = {static_cast<int>(a.references->size(ref_dim - 1)),
              static_cast<int>(a.references->size(ref_dim - 2)), a.pillar};
    p.references = static_cast<const A*>(a.references->const_data_ptr());
  }
  p.value = static_cast<const T*>(a.value.const_data_ptr());
  p.offsets = static_cast<const A*>(a.offsets.const_data_ptr());
  p.weights = static_cast<const A*>(a.logits.const_data_ptr());
  if (a.row_splits) p.row_splits = static_cast<const int64_t*>(a.row_splits->const_data_ptr());
  if (a.row_value) p.row_value = static_cast<const int64_t*>(a.row_value->const_data_ptr());
  return p;
}

inline Tensor not_wanted(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <typename Backend>
struct Ops {
  static std::tuple<Tensor, Tensor> run_forward(const Arguments& a, bool return_weights) {
    const int64_t width = a.value.size(2) * a.value.size(3);
    const bool ragged = a.row_splits.has_value();
    const int64_t lead = a.logits.size(0) / a.queues;
    Tensor out = ragged ? torch::stable::new_empty(a.value, {lead, width})
                        : torch::stable::new_empty(a.value, {lead, a.logits.size(1), width});
    Tensor weights =
        return_weights ? torch::stable::new_empty(a.logits, a.logits.sizes()) : not_wanted(a.logits);
    dispatch("ms_deform_attn: value", a.value.scalar_type(), [&](auto tag) {
      using T = decltype(tag);
      using A = accumulate_t<T>;
      Backend::template forward<T>(a, static_cast<T*>(out.mutable_data_ptr()),
                                   return_weights ? static_cast<A*>(weights.mutable_data_ptr()) : nullptr);
    });
    return {out, weights};
  }

  static Grads run_backward(const Arguments& a, const Tensor& grad_out,
                            const std::optional<Tensor>& grad_weights, const Needs& needs) {
    const ScalarType dtype = a.value.scalar_type();
    STD_TORCH_CHECK(grad_out.scalar_type() == dtype && grad_out.is_cuda() == a.value.is_cuda(),
                    "ms_deform_attn: the gradient must have value's dtype and device");
    STD_TORCH_CHECK(grad_out.numel() == queries_of(a) / a.queues * a.value.size(2) * a.value.size(3),
                    "ms_deform_attn: the gradient does not have the output's size");
    const Tensor out = torch::stable::contiguous(grad_out);
    std::optional<Tensor> weights;
    if (grad_weights) {
      check_coordinates(a.value, *grad_weights, "the weights' gradient");
      STD_TORCH_CHECK(grad_weights->numel() == a.logits.numel(),
                      "ms_deform_attn: the weights' gradient does not have the weights' size");
      weights = torch::stable::contiguous(*grad_weights);
    }
    const auto make = [](bool need, const Tensor& like, ScalarType type) {
      if (!need) return not_wanted(like);
      return torch::stable::new_empty(like, like.sizes(), type);
    };
    const ScalarType accumulate = accumulate_dtype(dtype);
    Tensor value = make(needs.value, a.value, needs.value ? accumulate : dtype);
    Tensor references = make(needs.references, a.references ? *a.references : a.logits, accumulate);
    Tensor offsets = make(needs.offsets, a.offsets, accumulate);
    Tensor logits = make(needs.logits, a.logits, accumulate);
    dispatch("ms_deform_attn: value", dtype, [&](auto tag) {
      using T = decltype(tag);
      using A = accumulate_t<T>;
      const auto wanted = [](const Tensor& t, bool need) {
        return need ? static_cast<A*>(t.mutable_data_ptr()) : nullptr;
      };
      const Gradients<T> g{static_cast<const T*>(out.const_data_ptr()),
                           weights ? static_cast<const A*>(weights->const_data_ptr()) : nullptr,
                           wanted(value, needs.value),
                           wanted(references, needs.references),
                           wanted(offsets, needs.offsets),
                           wanted(logits, needs.logits),
                           needs.deterministic};
      Backend::template backward<T>(a, g);
    });
    if (needs.value && dtype != accumulate_dtype(dtype)) value = torch::stable::to(value, dtype);
    return {value, references, offsets, logits};
  }

  static Tensor forward(const Tensor& value, const Ints& shapes, const Ints& starts, const Tensor& locations,
                        const Tensor& weights) {
    Arguments a = make_arguments(value, shapes, starts, std::nullopt, locations, weights);
    a.softmax = false;
    return std::get<0>(run_forward(a, false));
  }

  static std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& value,
                                                     const Ints& shapes, const Ints& starts,
                                                     const Tensor& locations, const Tensor& weights,
                                                     bool need_value, bool need_locations, bool need_weights,
                                                     bool deterministic) {
    Arguments a = make_arguments(value, shapes, starts, std::nullopt, locations, weights);
    a.softmax = false;
    const Grads g = run_backward(a, grad_out, std::nullopt,
                                 {need_value, false, need_locations, need_weights, deterministic});
    return {std::get<0>(g), std::get<2>(g), std::get<3>(g)};
  }

  static Arguments fused_arguments(const Tensor& value, const Ints& shapes, const Tensor& references,
                                   const Tensor& offsets, const Tensor& logits, bool pillar, int64_t queues) {
    Arguments a = make_arguments(value, shapes, dense_starts(shapes), references, offsets, logits);
    STD_TORCH_CHECK(logits.dim() == 5, "ms_deform_attn_fused: attention_logits must be (B, Q, H, L, P)");
    STD_TORCH_CHECK(
        queues >= 1 && queues <= std::numeric_limits<int32_t>::max() && logits.size(0) % queues == 0,
        "ms_deform_attn_fused: the batch must be a multiple of the queues, ", queues);
    a.pillar = pillar;
    a.queues = queues;
    check_references(a);
    return a;
  }

  static std::tuple<Tensor, Tensor> fused(const Tensor& value, const Ints& shapes, const Tensor& references,
                                          const Tensor& offsets, const Tensor& logits, bool pillar,
                                          int64_t queues, bool return_weights) {
    return run_forward(fused_arguments(value, shapes, references, offsets, logits, pillar, queues),
                       return_weights);
  }

  static Grads fused_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_weights,
                              const Tensor& value, const Ints& shapes, const Tensor& references,
                              const Tensor& offsets, const Tensor& logits, bool pillar, int64_t queues,
                              bool need_value, bool need_references, bool need_offsets, bool need_logits,
                              bool deterministic) {
    return run_backward(fused_arguments(value, shapes, references, offsets, logits, pillar, queues), grad_out,
                        grad_weights,
                        {need_value, need_references, need_offsets, need_logits, deterministic});
  }

  static Arguments ragged_arguments(const Tensor& value, const Ints& shapes, const Tensor& references,
                                    const Tensor& offsets, const Tensor& logits, const Tensor& row_splits,
                                    const Tensor& row_value) {
    Arguments a = make_arguments(value, shapes, dense_starts(shapes), references, offsets, logits);
    STD_TORCH_CHECK(logits.dim() == 4, "ms_deform_attn_ragged: attention_logits must be (M, H, L, P)");
    STD_TORCH_CHECK(
        row_splits.scalar_type() == ScalarType::Long && row_value.scalar_type() == ScalarType::Long,
        "ms_deform_attn_ragged: row_splits and row_value must be int64");
    STD_TORCH_CHECK(row_splits.numel() == logits.size(0) + 1,
                    "ms_deform_attn_ragged: row_splits must be (M + 1)");
    STD_TORCH_CHECK(row_splits.is_cuda() == value.is_cuda() && row_value.is_cuda() == value.is_cuda(),
                    "ms_deform_attn_ragged: row_splits and row_value must be where value is");
    a.row_splits = torch::stable::contiguous(row_splits);
    a.row_value = torch::stable::contiguous(row_value);
    a.pillar = true;
    check_references(a);
    return a;
  }

  static std::tuple<Tensor, Tensor> ragged(const Tensor& value, const Ints& shapes, const Tensor& references,
                                           const Tensor& offsets, const Tensor& logits,
                                           const Tensor& row_splits, const Tensor& row_value,
                                           bool return_weights) {
    return run_forward(ragged_arguments(value, shapes, references, offsets, logits, row_splits, row_value),
                       return_weights);
  }

  static Grads ragged_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_weights,
                               const Tensor& value, const Ints& shapes, const Tensor& references,
                               const Tensor& offsets, const Tensor& logits, const Tensor& row_splits,
                               const Tensor& row_value, bool need_value, bool need_references,
                               bool need_offsets, bool need_logits, bool deterministic) {
    return run_backward(ragged_arguments(value, shapes, references, offsets, logits, row_splits, row_value),
                        grad_out, grad_weights,
                        {need_value, need_references, need_offsets, need_logits, deterministic});
  }

  template <typename Library>
  static void register_all(Library& m) {
    m.impl("ms_deform_attn", TORCH_BOX(&forward));
    m.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
    m.impl("ms_deform_attn_fused", TORCH_BOX(&fused));
    m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&fused_backward));
    m.impl("ms_deform_attn_ragged", TORCH_BOX(&ragged));
    m.impl("ms_deform_attn_ragged_backward", TORCH_BOX(&ragged_backward));
  }
};

}  // namespace bevkd2::msda
