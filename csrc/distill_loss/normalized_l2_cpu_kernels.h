// The CPU kernels over Vec<A>, compiled once for each instruction set: included inside a namespace by
// normalized_l2_cpu.cpp.
#include "block_io.h"

// Calls function(s, t, sample, first, n) for the blocks of a channel; s and t are n numbers of type A.
// Scratch: two blocks.
template <typename A, typename F>
inline void for_blocks(const Level& level, int64_t channel, A* scratch, const F& function) {
  for (int64_t sample = 0; sample < level.batch; ++sample)
    for (int64_t first = 0; first < level.pixels; first += kBlock) {
      const int64_t n = level.pixels - first < kBlock ? level.pixels - first : kBlock;
      const A* s = as_block(level.student.data, level.student.dtype, level.student.at(sample, channel, first),
                            n, scratch);
      const A* t = as_block(level.teacher.data, level.teacher.dtype, level.teacher.at(sample, channel, first),
                            n, scratch + kBlock);
      function(s, t, sample, first, n);
    }
}

// Numbers i..i + 8 of a block of n; `fill` where there are fewer.
template <typename A>
inline Vec<A> eight(const A* p, int64_t i, int64_t n, A fill) {
  if (i + 8 <= n) return Vec<A>::load(p + i);
  A rest[8];
  for (int64_t k = 0; k < 8; ++k) rest[k] = i + k < n ? p[i + k] : fill;
  return Vec<A>::load(rest);
}

// The sum of (x - y)^2 over a channel; writes coefficient / (std s + eps) * ((1 - q) x - y) where the level
// has a gradient. Scratch: three blocks. Sums of a block are of type A, those of its blocks of type double.
template <typename A>
double channel_loss(const Level& level, int64_t channel, double epsilon, A coefficient, A* scratch) {
  using V = Vec<A>;
  const double entries = static_cast<double>(level.entries());
  // Sums are of the differences from the first entry: those of a constant channel are 0 without rounding.
  A first_s = 0, first_t = 0;
  double total_s = 0, total_t = 0;
  for_blocks(level, channel, scratch, [&](const A* s, const A* t, int64_t sample, int64_t first, int64_t n) {
    if (sample == 0 && first == 0) {
      first_s = s[0];
      first_t = t[0];
    }
    const V origin_s = V::set1(first_s), origin_t = V::set1(first_t);
    V sum_s = V::set1(0), sum_t = V::set1(0);
    for (int64_t i = 0; i < n; i += 8) {
      sum_s = sum_s + (eight(s, i, n, first_s) - origin_s);
      sum_t = sum_t + (eight(t, i, n, first_t) - origin_t);
    }
    total_s += static_cast<double>(sum_s.sum());
    total_t += static_cast<double>(sum_t.sum());
  });
  const A mean_s = static_cast<A>(static_cast<double>(first_s) + total_s / entries);
  const A mean_t = static_cast<A>(static_cast<double>(first_t) + total_t / entries);
  const V center_s = V::set1(mean_s), center_t = V::set1(mean_t);
  Moments moments;
  for_blocks(level, channel, scratch, [&](const A* s, const A* t, int64_t, int64_t, int64_t n) {
    V student = V::set1(0), teacher = V::set1(0), product = V::set1(0);
    for (int64_t i = 0; i < n; i += 8) {
      const V a = eight(s, i, n, mean_s) - center_s, b = eight(t, i, n, mean_t) - center_t;
      student = V::fma(a, a, student);
      teacher = V::fma(b, b, teacher);
      product = V::fma(a, b, product);
    }
    moments.student += static_cast<double>(student.sum());
    moments.teacher += static_cast<double>(teacher.sum());
    moments.product += static_cast<double>(product.sum());
  });
  const Normalizer<A> by = normalizer_of<A>(moments, entries, epsilon);
  const V inverse_s = V::set1(by.inverse_s), inverse_t = V::set1(by.inverse_t);
  const V keep = V::set1(by.keep), scale = V::set1(coefficient * by.inverse_s);
  A* out = scratch + 2 * kBlock;
  double loss = 0;
  for_blocks(level, channel, scratch, [&](const A* s, const A* t, int64_t sample, int64_t first, int64_t n) {
    V sum = V::set1(0);
    for (int64_t i = 0; i < n; i += 8) {
      const V x = (eight(s, i, n, mean_s) - center_s) * inverse_s;
      const V y = (eight(t, i, n, mean_t) - center_t) * inverse_t;
      const V gap = x - y;
      sum = V::fma(gap, gap, sum);
      (scale * (V::fma(keep, x, V::set1(0) - y))).store(out + i);
    }
    loss += static_cast<double>(sum.sum());
    if (level.grad.data)
      store_block(out, level.grad.dtype, level.grad.at(sample, channel, first), n, level.grad.data);
  });
  return loss;
}
