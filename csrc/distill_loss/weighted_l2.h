// The weighted squared distance ops in terms of what a device supplies: from tensors to levels, and back.
// Shapes are checked in Python, where messages reach the user whole; what is checked here is what a kernel
// must not trust anyone for.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common.h"
#include "weighted_l2_problem.h"

namespace bevkd2::distill {

// The tensors of one call. Levels are (B, C, P); an absent weight is an empty tensor.
struct L2Arguments {
  Tensors student, teacher;
  Tensors pixel_weights;    // (B, P)
  Tensors channel_weights;  // (B, C)
  Tensor scale;             // (L, B)

  int64_t samples() const { return scale.size(1); }
  int64_t levels() const { return scale.size(0); }
};

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

// Whether a dimension of that size, and of that stride, is where a dense tensor would have it.
inline bool has_stride(const Tensor& t, int64_t dim, int64_t stride) {
  return t.size(dim) <= 1 || t.stride(dim) == stride;
}

// Pixels lie next to each other (NCHW), or channels do. Dense, whichever it is.
inline bool is_planar(const Tensor& t) { return has_stride(t, 2, 1) && has_stride(t, 1, t.size(2)); }
inline bool is_interleaved(const Tensor& t) { return has_stride(t, 1, 1) && has_stride(t, 2, t.size(1)); }

inline void check_weight(const L2Arguments& a, const Tensor& weight, int64_t size) {
  if (weight.numel() == 0) return;
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == a.samples() && weight.size(1) == size &&
                      has_stride(weight, 1, 1) && weight.scalar_type() == a.scale.scalar_type(),
                  "weighted_l2: weights must be (B, pixels) or (B, channels) with the last dimension dense, "
                  "in the scale's dtype");
}

inline void check_level(const L2Arguments& a, size_t l) {
  const Tensor &s = a.student[l], &t = a.teacher[l];
  STD_TORCH_CHECK(s.dim() == 3 && same_shape(s, t) && s.size(0) == a.samples(),
                  "weighted_l2: levels must be (B, C, P), student and teacher alike");
  STD_TORCH_CHECK(
      s.scalar_type() == a.student[0].scalar_type() && t.scalar_type() == a.teacher[0].scalar_type(),
      "weighted_l2: all levels must be of one dtype");
  const int64_t size = s.size(1) * s.size(2);
  const bool dense = has_stride(s, 0, size) && has_stride(t, 0, size);
  const bool alike = (is_planar(s) && is_planar(t)) || (is_interleaved(s) && is_interleaved(t));
  STD_TORCH_CHECK(s.numel() == 0 || (dense && alike),
                  "weighted_l2: levels must be dense, student and teacher in one layout");
  check_weight(a, a.pixel_weights[l], s.size(2));
  check_weight(a, a.channel_weights[l], s.size(1));
}

inline void check_arguments(const L2Arguments& a) {
  const size_t levels = a.student.size();
  STD_TORCH_CHECK(levels > 0 && a.teacher.size() == levels && a.pixel_weights.size() == levels &&
                      a.channel_weights.size() == levels && a.scale.dim() == 2 &&
                      a.levels() == static_cast<int64_t>(levels),
                  "weighted_l2: lists must have an entry a level, and scale must be (levels, B)");
  STD_TORCH_CHECK(a.scale.is_contiguous() && a.scale.scalar_type() == wide_dtype(a.student[0].scalar_type(),
                                                                                 a.teacher[0].scalar_type()),
                  "weighted_l2: scale must be contiguous, float64 where the features are, else float32");
  for (size_t l = 0; l < levels; ++l) check_level(a, l);
}

inline const void* weights_or_null(const Tensor& weight) {
  return weight.numel() == 0 ? nullptr : weight.const_data_ptr();
}

// `grad` is an empty tensor where it is not wanted.
inline L2Level make_level(const L2Arguments& a, size_t l, const Tensor* grad) {
  const Tensor& s = a.student[l];
  const bool planar = is_planar(s);
  const Tensor& rows = planar ? a.channel_weights[l] : a.pixel_weights[l];
  const Tensor& columns = planar ? a.pixel_weights[l] : a.channel_weights[l];
  L2Level level{};
  level.student = s.const_data_ptr();
  level.teacher = a.teacher[l].const_data_ptr();
  level.grad = grad ? grad->mutable_data_ptr() : nullptr;
  level.row_weights = weights_or_null(rows);
  level.column_weights = weights_or_null(columns);
  level.row_stride = level.row_weights ? rows.stride(0) : 0;
  level.column_stride = level.column_weights ? columns.stride(0) : 0;
  level.rows = s.size(planar ? 1 : 2);
  level.length = s.size(planar ? 2 : 1);
  if (!level.row_weights && !level.column_weights) {  // one long row
    level.length *= level.rows;
    level.rows = 1;
  }
  return level;
}

inline std::vector<L2Level> make_levels(const L2Arguments& a, const Tensors& grads) {
  std::vector<L2Level> levels;
  for (size_t l = 0; l < a.student.size(); ++l)
    levels.push_back(make_level(a, l, grads.empty() ? nullptr : &grads[l]));
  return levels;
}

// A device supplies prepare(grad), for fresh memory, and run<S, T>(arguments, levels, norm, loss, sums): it
// fills the gradients, and, unless loss is null, sums[l, b] = sum of weight * d^2 and loss[l] = sum over b of
// scale[l, b] * sums[l, b] (its root: norm).
template <typename Backend>
struct L2Ops {
  static Tensors make_gradients(const L2Arguments& a) {
    Tensors grads;
    for (const Tensor& s : a.student) {
      grads.push_back(torch::stable::empty_like(s));
      Backend::prepare(grads.back());
    }
    return grads;
  }

  static void run(const L2Arguments& a, const Tensors& grads, bool norm, Tensor* loss, Tensor* sums) {
    const std::vector<L2Level> levels = make_levels(a, grads);
    dispatch_pair(a.student[0].scalar_type(), a.teacher[0].scalar_type(), [&](auto s, auto t) {
      using A = wide_t<decltype(s), decltype(t)>;
      Backend::template run<decltype(s), decltype(t)>(
          a, levels, norm, loss ? static_cast<A*>(loss->mutable_data_ptr()) : nullptr,
          sums ? static_cast<A*>(sums->mutable_data_ptr()) : nullptr);
      return 0;
    });
  }

  static std::tuple<Tensor, Tensor, Tensors> forward(Tensors student, Tensors teacher, Tensors pixel_weights,
                                                     Tensors channel_weights, Tensor scale, bool norm,
                                                     bool need_grad) {
    const L2Arguments a{student, teacher, pixel_weights, channel_weights, scale};
    check_arguments(a);
    Tensor loss = torch::stable::new_empty(scale, {a.levels()});
    Tensor sums = torch::stable::new_empty(scale, {a.levels(), a.samples()});
    const Tensors grads = need_grad ? make_gradients(a) : Tensors{};
    run(a, grads, norm, &loss, &sums);
    return {loss, sums, grads};
  }

  static Tensors backward(Tensors student, Tensors teacher, Tensors pixel_weights, Tensors channel_weights,
                          Tensor factor) {
    const L2Arguments a{student, teacher, pixel_weights, channel_weights, factor};
    check_arguments(a);
    const Tensors grads = make_gradients(a);
    run(a, grads, false, nullptr, nullptr);
    return grads;
  }
};

}  // namespace bevkd2::distill
