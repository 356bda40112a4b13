// The maths of multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3) as pure functions
// that the CPU and the CUDA kernels share. Nothing here loads from a value map, allocates or synchronises.
//
// Pixel convention: pixel i has its centre at i (so a normalised location u lies at pixel u * size - 0.5,
// which is grid_sample's align_corners=False), pixels outside the map are zero, and a point counts only where
// -1 < pixel < size in both axes. NaN fails that test, so it is out of range.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/macros.h"

namespace bevkd2::msda {

// How a sampling offset becomes a pixel: pixel = base + scale * offset, in each axis.
template <typename A>
struct Affine {
  A base_x, base_y, scale_x, scale_y;
};

// Which reference of a row a point uses, and what the reference holds.
struct ReferenceRule {
  int dims;     // 0: offsets are normalised locations; 2: (x, y); 4: (x, y, w, h)
  int count;    // references of a row
  bool pillar;  // point p uses reference p % count (BEVFormer); otherwise level l uses reference l
};

BEVKD2_HOST_DEVICE int reference_index(const ReferenceRule& rule, int level, int point) {
  if (rule.pillar) return point % rule.count;
  return rule.count == 1 ? 0 : level;
}

// `ref` points at the point's own reference: (dims), normalised to [0, 1].
template <typename A>
BEVKD2_HOST_DEVICE Affine<A> affine_at(const ReferenceRule& rule, const A* ref, int points, A width,
                                       A height) {
  const A half = A(0.5);
  if (rule.dims == 0) return {-half, -half, width, height};
  const A base_x = ref[0] * width - half;
  const A base_y = ref[1] * height - half;
  if (rule.dims == 2) return {base_x, base_y, A(1), A(1)};
  const A box = half / A(points);  // Deformable DETR: offset / P * ref_wh * 0.5
  return {base_x, base_y, ref[2] * box * width, ref[3] * box * height};
}

// `references` points at the references of one row: (count, dims).
template <typename A>
BEVKD2_HOST_DEVICE Affine<A> sampling_affine(const ReferenceRule& rule, const A* references, int level,
                                             int point, int points, A width, A height) {
  const A* ref = rule.dims == 0 ? references : references + reference_index(rule, level, point) * rule.dims;
  return affine_at(rule, ref, points, width, height);
}

// The 2 x 2 pixels around a point. Indices are clamped into the map, so they may always be loaded; an index
// that was clamped coincides with one that was not, and its weight and `inside` flag are zero.
template <typename A>
struct Corners {
  bool valid;              // the point counts
  int x0, x1, y0, y1;      // clamped pixel indices
  A weight_x0, weight_x1;  // bilinear weights, zero outside
  A weight_y0, weight_y1;
  A inside_x0, inside_x1;  // 1 where the corner is a pixel of the map, else 0
  A inside_y0, inside_y1;
};

template <typename A>
BEVKD2_HOST_DEVICE Corners<A> corner_setup(A x, A y, int width, int height) {
  Corners<A> c{};
  c.valid = x > A(-1) && x < A(width) && y > A(-1) && y < A(height);
  if (!c.valid) return c;  // everything zero: also keeps NaN and huge values away from the conversion to int
  const A floor_x = ::floor(x), floor_y = ::floor(y);
  const A dx = x - floor_x, dy = y - floor_y;
  const int left = static_cast<int>(floor_x), top = static_cast<int>(floor_y);
  c.inside_x0 = left >= 0 ? A(1) : A(0);
  c.inside_x1 = left + 1 < width ? A(1) : A(0);
  c.inside_y0 = top >= 0 ? A(1) : A(0);
  c.inside_y1 = top + 1 < height ? A(1) : A(0);
  c.x0 = left >= 0 ? left : 0;
  c.x1 = left + 1 < width ? left + 1 : width - 1;
  c.y0 = top >= 0 ? top : 0;
  c.y1 = top + 1 < height ? top + 1 : height - 1;
  c.weight_x0 = c.inside_x0 * (A(1) - dx);
  c.weight_x1 = c.inside_x1 * dx;
  c.weight_y0 = c.inside_y0 * (A(1) - dy);
  c.weight_y1 = c.inside_y1 * dy;
  return c;
}

// Gradients of attention * bilinear(point), given t_yx = <grad_out, value at corner (y, x)>.
template <typename A>
struct SampleGrad {
  A attention;  // with respect to the attention weight
  A x, y;       // with respect to the point, in pixels
};

template <typename A>
BEVKD2_HOST_DEVICE SampleGrad<A> sample_grad(A t00, A t01, A t10, A t11, A attention, const Corners<A>& c) {
  const A column0 = c.weight_y0 * t00 + c.weight_y1 * t10;
  const A column1 = c.weight_y0 * t01 + c.weight_y1 * t11;
  const A row0 = c.weight_x0 * t00 + c.weight_x1 * t01;
  const A row1 = c.weight_x0 * t10 + c.weight_x1 * t11;
  return {c.weight_x0 * column0 + c.weight_x1 * column1,
          attention * (c.inside_x1 * column1 - c.inside_x0 * column0),
          attention * (c.inside_y1 * row1 - c.inside_y0 * row0)};
}

// One weight of a softmax whose maximum and sum of exponentials are known, and its gradient.
template <typename A>
BEVKD2_HOST_DEVICE A softmax_weight(A logit, A maximum, A inverse_sum) {
  return ::exp(logit - maximum) * inverse_sum;
}

template <typename A>
BEVKD2_HOST_DEVICE A softmax_grad(A weight, A grad, A weighted_sum_of_grads) {
  return weight * (grad - weighted_sum_of_grads);
}

}  // namespace bevkd2::msda
