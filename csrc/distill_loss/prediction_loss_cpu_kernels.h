// The CPU kernels over Vec<A>, compiled once for each instruction set: included inside a namespace by
// prediction_loss_cpu.cpp.
//
// The divergences of two softmaxes or two sigmoids are computed from differences of logits, so that they are
// exact for nearly equal logits and finite for distant ones.
#include "block_io.h"

// 1 / (1 + exp(-x)); exp(-|x|) does not overflow.
template <typename A>
inline Vec<A> sigmoid(const Vec<A>& x, const Vec<A>& shrunk) {
  const Vec<A> one = Vec<A>::set1(1), inverse = one / (one + shrunk);
  return Vec<A>::select(x < Vec<A>::set1(0), shrunk * inverse, inverse);
}

// exp(-|x|).
template <typename A>
inline Vec<A> shrink(const Vec<A>& x) {
  return Vec<A>::min(x, Vec<A>::set1(0) - x).exp();
}

// Distance and its derivative of eight pairs of logits, s and t of the student and the teacher.
template <typename A>
struct Probabilities {
  static void of(const Vec<A>& s, const Vec<A>& t, A, Vec<A>& distance, Vec<A>& slope) {
    const Vec<A> shrunk = shrink(s), one = Vec<A>::set1(1), inverse = one / (one + shrunk);
    const Vec<A> gap = sigmoid(s, shrunk) - sigmoid(t, shrink(t));
    distance = gap * gap;
    slope = (gap + gap) * (shrunk * inverse * inverse);  // p (1 - p)
  }
};

template <typename A>
struct Logits {
  static void of(const Vec<A>& s, const Vec<A>& t, A, Vec<A>& distance, Vec<A>& slope) {
    const Vec<A> gap = s - t;
    distance = gap * gap;
    slope = gap + gap;
  }
};

// With signs turned so that t >= 0, and L(x) = log(1 + exp(-|x|)):
//   KL = max(-s, 0) + sigmoid(-t) (s - t) + L(s) - L(t)
template <typename A>
struct Bernoulli {
  static void of(const Vec<A>& student, const Vec<A>& teacher, A temperature, Vec<A>& distance,
                 Vec<A>& slope) {
    using V = Vec<A>;
    const V zero = V::set1(0), one = V::set1(1), inverse = V::set1(1 / temperature);
    const V a = student * inverse, b = teacher * inverse;
    const auto negative = b < zero;
    const V s = V::select(negative, zero - a, a), t = V::select(negative, zero - b, b);
    const V shrunk_s = shrink(s), shrunk_t = shrink(t);
    const V rest = shrunk_t / (one + shrunk_t);  // sigmoid(-t)
    const V kl = V::max(zero - s, zero) + (V::fma(rest, s - t, shrunk_s.log1p() - shrunk_t.log1p()));
    const V gap = sigmoid(s, shrunk_s) - (one - rest);
    distance = kl * V::set1(temperature * temperature);
    slope = V::select(negative, zero - gap, gap) * V::set1(temperature);
  }
};

// distance[0..n) and slope[0..n) of a run; arrays hold a multiple of eight.
template <typename A, template <typename> class Distance>
inline void elementwise(const A* s, const A* t, int64_t n, A temperature, A* distance, A* slope) {
  for (int64_t i = 0; i < n; i += 8) {
    Vec<A> d, g;
    Distance<A>::of(Vec<A>::load(s + i), Vec<A>::load(t + i), temperature, d, g);
    d.store(distance + i);
    g.store(slope + i);
  }
}

// Each location's (z - max) / T, in place.
template <typename A>
inline void shift_to_highest(A* z, int64_t locations, int64_t classes, A inverse) {
  for (int64_t q = 0; q < locations; ++q) {
    A* own = z + q * classes;
    A highest = own[0];
    for (int64_t k = 1; k < classes; ++k) highest = own[k] > highest ? own[k] : highest;
    for (int64_t k = 0; k < classes; ++k) own[k] = (own[k] - highest) * inverse;
  }
}

// The softmax form: totals[q] is a location's divergence, slope its derivatives. s and t are overwritten.
template <typename A>
inline void softmax_blocks(A* s, A* t, int64_t locations, int64_t classes, A temperature, A* totals, A* slope,
                           A* shifted) {
  const A inverse = 1 / temperature;
  const int64_t n = locations * classes;
  shift_to_highest(s, locations, classes, inverse);
  shift_to_highest(t, locations, classes, inverse);
  for (int64_t i = 0; i < n; i += 8) {
    const Vec<A> ds = Vec<A>::load(s + i), dt = Vec<A>::load(t + i);
    (dt - ds).store(shifted + i);
    ds.exp().store(s + i);
    dt.exp().store(t + i);
  }
  for (int64_t q = 0; q < locations; ++q) {
    const A *es = s + q * classes, *et = t + q * classes, *gap = shifted + q * classes;
    A sum_s = 0, sum_t = 0, cross = 0;
    for (int64_t k = 0; k < classes; ++k) {
      sum_s += es[k];
      sum_t += et[k];
      cross += et[k] * gap[k];
    }
    totals[q] = temperature * temperature * (cross / sum_t + (std::log(sum_s) - std::log(sum_t)));
    const A share_s = temperature / sum_s, share_t = temperature / sum_t;
    for (int64_t k = 0; k < classes; ++k) slope[q * classes + k] = es[k] * share_s - et[k] * share_t;
  }
}

// Buffers of a block: four of `padded` numbers, then one of its locations.
template <typename A>
struct Block {
  A *s, *t, *distance, *slope, *totals;
  Block(A* at, int64_t padded)
      : s(at), t(at + padded), distance(at + 2 * padded), slope(at + 3 * padded), totals(at + 4 * padded) {}
};

template <typename A>
inline void distances(const Problem<A>& p, int64_t n, const Block<A>& b) {
  const int64_t count = n * p.classes;
  for (int64_t i = count; i % 8 != 0; ++i) b.s[i] = b.t[i] = 0;
  if (p.distance == Distance::softmax && p.classes > 0)
    return softmax_blocks(b.s, b.t, n, p.classes, p.temperature, b.totals, b.slope, b.distance);
  if (p.distance == Distance::probabilities)
    elementwise<A, Probabilities>(b.s, b.t, count, p.temperature, b.distance, b.slope);
  else if (p.distance == Distance::logits)
    elementwise<A, Logits>(b.s, b.t, count, p.temperature, b.distance, b.slope);
  else
    elementwise<A, Bernoulli>(b.s, b.t, count, p.temperature, b.distance, b.slope);
  for (int64_t q = 0; q < n; ++q) {
    A total = 0;
    for (int64_t k = 0; k < p.classes; ++k) total += b.distance[q * p.classes + k];
    b.totals[q] = total;
  }
}

// Multiplies by factor; a factor of 0 makes even NaN 0.
template <typename A>
inline void scale(A* numbers, int64_t n, A factor) {
  if (factor == 0) {
    for (int64_t k = 0; k < n; ++k) numbers[k] = 0;
  } else {
    for (int64_t k = 0; k < n; ++k) numbers[k] *= factor;
  }
}

// The weights of locations first..first + n, summed for each group in eight lanes, which do not wait for each
// other.
template <bool kWeights, bool kObjects, typename A>
inline Partial sum_weights(const Problem<A>& p, int64_t first, int64_t n) {
  const A* weights = p.weights;
  const bool* objects = p.objects;
  double in_objects[8] = {}, in_background[8] = {};
  const auto add = [&](int64_t at, int lane) {
    const double weight = kWeights ? static_cast<double>(weights[at]) : 1;
    const bool object = kObjects && objects[at];
    in_objects[lane] += object ? weight : 0;
    in_background[lane] += object ? 0 : weight;
  };
  int64_t at = first;
  for (; at + 8 <= first + n; at += 8)
    for (int lane = 0; lane < 8; ++lane) add(at + lane, lane);
  for (; at < first + n; ++at) add(at, 0);
  Partial sum;
  for (int lane = 0; lane < 8; ++lane) {
    sum.objects += in_objects[lane];
    sum.background += in_background[lane];
  }
  return sum;
}

template <typename A>
Partial block_weights(const Problem<A>& p, int64_t first, int64_t n) {
  if (!p.objects) {
    if (p.weights) return sum_weights<true, false>(p, first, n);
    return {0, static_cast<double>(n)};
  }
  return p.weights ? sum_weights<true, true>(p, first, n) : sum_weights<false, true>(p, first, n);
}

// Locations first..first + n of the flattened (B, Q): their part of both losses, before factor and total.
// coefficients: of both groups' gradients, factor / total * upstream.
template <typename A>
Partial block_loss(const Problem<A>& p, const A* coefficients, int64_t first, int64_t n, A* scratch) {
  const Block<A> b(scratch, (n * p.classes + 7) / 8 * 8);
  Partial sums;
  load_block(p.student, p.student_dtype, first * p.classes, n * p.classes, b.s);
  load_block(p.teacher, p.teacher_dtype, first * p.classes, n * p.classes, b.t);
  distances(p, n, b);
  for (int64_t q = 0; q < n; ++q) {
    const int64_t at = first + q;
    const A weight = p.weight(at);
    const bool object = p.is_object(at);
    A factor = 0, grad_guidance = 0;
    if (weight != 0) {
      const A guidance = object ? p.guidance_of(at) : A(1);
      const A coefficient = coefficients[object ? 0 : 1] * weight;
      (object ? sums.objects : sums.background) += static_cast<double>(weight * guidance * b.totals[q]);
      factor = coefficient * guidance;
      if (object) grad_guidance = coefficient * b.totals[q];
    }
    if (p.grad_guidance) p.grad_guidance[at] = grad_guidance;
    if (p.grad_logits) scale(b.slope + q * p.classes, p.classes, factor);
  }
  if (p.grad_logits) store_block(b.slope, p.student_dtype, first * p.classes, n * p.classes, p.grad_logits);
  return sums;
}
