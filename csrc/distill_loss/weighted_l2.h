// The weighted squared distance: what the CPU and CUDA kernels share, and the two ops in terms of one
// function that a device supplies (Backend::run).
//
// A level is (B, C, P), stored NCHW or channels-last, and is computed as rows: NCHW maps have one row per
// channel, channels-last maps (and vectors) one row per pixel. The forward pass writes gradients together
// with the loss; the backward op computes gradients alone, of factors that the forward pass did not know.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../core/macros.h"
#include "layout.h"

namespace bevkd2::distill::weighted_l2 {

// One level: `samples` times `rows` rows of `length` entries, contiguous in student, teacher and grad. The
// weight of an entry is the product of its row's and its column's weight; a null pointer is weight 1.
struct Level {
  const void* student;
  const void* teacher;
  void* grad;                         // of the student's dtype; null: not wanted
  const void* row_weights;            // of the accumulation type
  const void* column_weights;         // likewise
  int64_t row_stride, column_stride;  // between the weights of two samples
  int64_t rows, length;
  int64_t segments;    // parts of a row; 1 unless a row is longer than a chunk
  int64_t chunk_rows;  // whole rows per chunk; 1 where a row has several segments
  int64_t chunks;      // per sample
  int64_t first;       // number of the level's first chunk
};

// The part of a level that one task handles. It lies in one sample, so that sums depend on the data alone.
struct Chunk {
  int64_t sample;
  int64_t row_begin, row_end;
  int64_t begin, end;  // entries of each of the rows
};

// Divides a level's samples into chunks of about `size` entries; returns the number after the last one.
inline int64_t plan_chunks(Level& level, int64_t samples, int64_t size, int64_t first) {
  const int64_t length = level.length > 0 ? level.length : 1;
  level.segments = (length + size - 1) / size;
  level.chunk_rows = level.segments > 1 ? 1 : size / length;
  level.chunks = (level.rows + level.chunk_rows - 1) / level.chunk_rows * level.segments;
  if (level.length == 0) level.chunks = 0;
  level.first = first;
  return first + samples * level.chunks;
}

// `number` counts the chunks of all levels.
BEVKD2_HOST_DEVICE Chunk chunk_of(const Level& level, int64_t number) {
  const int64_t local = number - level.first, in_sample = local % level.chunks;
  const int64_t row = in_sample / level.segments * level.chunk_rows, segment = in_sample % level.segments;
  const int64_t row_end = row + level.chunk_rows < level.rows ? row + level.chunk_rows : level.rows;
  // Equal segments whose length is a multiple of 64 entries (the last may be shorter), so that each begins at
  // the start of a cache line.
  const int64_t part = ((level.length + level.segments - 1) / level.segments + 63) / 64 * 64;
  const int64_t begin = segment * part < level.length ? segment * part : level.length;
  const int64_t end = begin + part < level.length ? begin + part : level.length;
  return {local / level.chunks, row, row_end, begin, end};
}

// Pointers are to the accumulation type A. scale: (L, B). sums[l, b] is the sum of weight * d^2 and loss[l]
// the sum over b of scale[l, b] * sums[l, b], or of its root with `norm`; both are null in the backward op.
// Gradients are 2 * scale[l, b] * weight * d.
template <typename A>
struct Problem {
  std::vector<Level> levels;
  int64_t samples;
  const A* scale;
  bool norm;
  A *loss, *sums;
};

// What the schemas list. Levels are (B, C, P); an absent weight is an empty tensor.
struct Arguments {
  Tensors student, teacher;
  Tensors pixel_weights;    // (B, P)
  Tensors channel_weights;  // (B, C)
  Tensor scale;             // (L, B)

  int64_t samples() const { return scale.size(1); }
  int64_t levels() const { return scale.size(0); }
};

inline bool is_planar(const Tensor& t) { return adjacent(t, 2) && has_stride(t, 1, t.size(2)); }
inline bool is_interleaved(const Tensor& t) { return adjacent(t, 1) && has_stride(t, 2, t.size(1)); }

// A device supplies run<S, T>(problem, a tensor of its device), which fills the gradients and, unless they
// are null, sums and loss. S and T are the student's and the teacher's type.
template <typename Backend>
struct Ops {
  static constexpr const char* kOp = "weighted_l2";

  static void check_weight(const Arguments& a, const Tensor& weight, int64_t size) {
    if (weight.numel() == 0) return;
    STD_TORCH_CHECK(
        weight.dim() == 2 && weight.size(0) == a.samples() && weight.size(1) == size && adjacent(weight, 1) &&
            weight.scalar_type() == a.scale.scalar_type() && together(weight, a.scale),
        "weighted_l2: weights must be (B, pixels) or (B, channels) with the last dimension dense, "
        "in the scale's dtype and on its device");
  }

  static void check_level(const Arguments& a, size_t l) {
    const Tensor &s = a.student[l], &t = a.teacher[l];
    STD_TORCH_CHECK(s.dim() == 3 && t.dim() == 3 && s.size(0) == a.samples() && t.size(0) == a.samples() &&
                        s.size(1) == t.size(1) && s.size(2) == t.size(2),
                    "weighted_l2: levels must be (B, C, P), student and teacher alike");
    STD_TORCH_CHECK(
        s.scalar_type() == a.student[0].scalar_type() && t.scalar_type() == a.teacher[0].scalar_type(),
        "weighted_l2: all levels must be of one dtype");
    check_placed(kOp, s, t, a.scale.scalar_type());
    STD_TORCH_CHECK(together(s, a.scale), "weighted_l2: levels and scale must be on one device");
    const int64_t size = s.size(1) * s.size(2);
    const bool dense = has_stride(s, 0, size) && has_stride(t, 0, size);
    const bool alike = (is_planar(s) && is_planar(t)) || (is_interleaved(s) && is_interleaved(t));
    STD_TORCH_CHECK(s.numel() == 0 || (dense && alike),
                    "weighted_l2: levels must be dense, student and teacher in one layout");
    check_weight(a, a.pixel_weights[l], s.size(2));
    check_weight(a, a.channel_weights[l], s.size(1));
  }

  static void check(const Arguments& a) {
    const size_t levels = a.student.size();
    STD_TORCH_CHECK(levels > 0 && a.teacher.size() == levels && a.pixel_weights.size() == levels &&
                        a.channel_weights.size() == levels && a.scale.dim() == 2 &&
                        a.levels() == static_cast<int64_t>(levels),
                    "weighted_l2: lists must have one entry per level, and scale must be (levels, B)");
    STD_TORCH_CHECK(
        a.scale.is_contiguous() &&
            a.scale.scalar_type() == accumulate_dtype(a.student[0].scalar_type(), a.teacher[0].scalar_type()),
        "weighted_l2: scale must be contiguous, float64 where the features are, else float32");
    for (size_t l = 0; l < levels; ++l) check_level(a, l);
  }

  static const void* weights_or_null(const Tensor& weight) {
    return weight.numel() == 0 ? nullptr : weight.const_data_ptr();
  }

  static Level make_level(const Arguments& a, size_t l, const Tensor* grad) {
    const Tensor& s = a.student[l];
    const bool planar = is_planar(s);
    const Tensor& rows = planar ? a.channel_weights[l] : a.pixel_weights[l];
    const Tensor& columns = planar ? a.pixel_weights[l] : a.channel_weights[l];
    Level level{};
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

  // `grads` is empty where no gradient is wanted; loss and sums are null in the backward op.
  static void run(const Arguments& a, const Tensors& grads, bool norm, Tensor* loss, Tensor* sums) {
    dispatch("weighted_l2: student", a.student[0].scalar_type(), [&](auto s) {
      dispatch("weighted_l2: teacher", a.teacher[0].scalar_type(), [&](auto t) {
        using A = accumulate_t<decltype(s), decltype(t)>;
        Problem<A> p{};
        for (size_t l = 0; l < a.student.size(); ++l)
          p.levels.push_back(make_level(a, l, grads.empty() ? nullptr : &grads[l]));
        p.samples = a.samples();
        p.scale = static_cast<const A*>(a.scale.const_data_ptr());
        p.norm = norm;
        p.loss = loss ? static_cast<A*>(loss->mutable_data_ptr()) : nullptr;
        p.sums = sums ? static_cast<A*>(sums->mutable_data_ptr()) : nullptr;
        Backend::template run<decltype(s), decltype(t)>(p, a.scale);
      });
    });
  }

  static Tensors make_gradients(const Arguments& a) {
    Tensors grads;
    for (const Tensor& s : a.student) grads.push_back(torch::stable::empty_like(s));
    return grads;
  }

  static std::tuple<Tensor, Tensor, Tensors> forward(const Tensors& student, const Tensors& teacher,
                                                     const Tensors& pixel_weights,
                                                     const Tensors& channel_weights, const Tensor& scale,
                                                     bool norm, bool need_grad) {
    const Arguments a{student, teacher, pixel_weights, channel_weights, scale};
    check(a);
    Tensor loss = torch::stable::new_empty(scale, {a.levels()});
    Tensor sums = torch::stable::new_empty(scale, {a.levels(), a.samples()});
    const Tensors grads = need_grad ? make_gradients(a) : Tensors{};
    run(a, grads, norm, &loss, &sums);
    return {loss, sums, grads};
  }

  static Tensors backward(const Tensors& student, const Tensors& teacher, const Tensors& pixel_weights,
                          const Tensors& channel_weights, const Tensor& factor) {
    const Arguments a{student, teacher, pixel_weights, channel_weights, factor};
    check(a);
    const Tensors grads = make_gradients(a);
    run(a, grads, false, nullptr, nullptr);
    return grads;
  }

  template <typename Library>
  static void register_all(Library& m) {
    m.impl("weighted_l2", TORCH_BOX(&forward));
    m.impl("weighted_l2_backward", TORCH_BOX(&backward));
  }
};

}  // namespace bevkd2::distill::weighted_l2
