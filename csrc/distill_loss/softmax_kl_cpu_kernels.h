// The CPU kernels over Vec<A>, compiled once for each instruction set: included inside a namespace by
// softmax_kl_cpu.cpp.
//
// With p_t = exp(d_t) / S_t, d_t = (t - max t) / T, and likewise for the student:
//   KL = sum p_t (d_t - d_s) + log S_s - log S_t        dKL/ds = (p_s - p_t) / T
#include "block_io.h"

// Lanes below n.
template <typename A>
inline typename Vec<A>::Mask first_lanes(int64_t n) {
  static const A lanes[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  return Vec<A>::load(lanes) < Vec<A>::set1(static_cast<A>(n));
}

// One softmax pair whose entries are adjacent. Both buffers hold a multiple of eight numbers.
template <typename A>
inline double row_kl(A* s, A* t, int64_t n, A inverse_temperature, A factor, bool need_grad) {
  using V = Vec<A>;
  V highest_s = V::set1(s[0]), highest_t = V::set1(t[0]);
  for (int64_t i = n; i % 8 != 0; ++i) {
    s[i] = s[0];
    t[i] = t[0];
  }
  for (int64_t i = 0; i < n; i += 8) {
    highest_s = V::max(highest_s, V::load(s + i));
    highest_t = V::max(highest_t, V::load(t + i));
  }
  const V max_s = V::set1(highest_s.highest()), max_t = V::set1(highest_t.highest());
  const V inverse = V::set1(inverse_temperature);
  V sum_s = V::set1(0), sum_t = V::set1(0), cross = V::set1(0);
  for (int64_t i = 0; i < n; i += 8) {
    const V ds = (V::load(s + i) - max_s) * inverse, dt = (V::load(t + i) - max_t) * inverse;
    V es = ds.exp(), et = dt.exp();
    if (i + 8 > n) {
      const auto inside = first_lanes<A>(n - i);
      es = es.where(inside);
      et = et.where(inside);
    }
    sum_s = sum_s + es;
    sum_t = sum_t + et;
    cross = V::fma(et, dt - ds, cross);
    es.store(s + i);
    et.store(t + i);
  }
  const A total_s = sum_s.sum(), total_t = sum_t.sum();
  if (need_grad) {
    const V share_s = V::set1(factor / total_s), share_t = V::set1(factor / total_t);
    for (int64_t i = 0; i < n; i += 8) (V::load(s + i) * share_s - V::load(t + i) * share_t).store(s + i);
  }
  return static_cast<double>(cross.sum() / total_t + (std::log(total_s) - std::log(total_t)));
}

// The loss of rows first..last, whose entries are adjacent. Scratch: two rows, each padded to eight.
template <typename A>
double entries_adjacent(const Task<A>& task, int64_t first, int64_t last) {
  const Level& level = *task.level;
  const int64_t n = level.entries, padded = (n + 7) / 8 * 8;
  A *s = task.scratch, *t = task.scratch + padded;
  double loss = 0;
  for (int64_t row = first; row < last; ++row) {
    const A weight = task.weight(row);
    const bool counts = weight != 0;
    if (counts) {
      load_block(level.student.data, level.student.dtype, level.student.at(task.sample, row, 0), n, s);
      load_block(level.teacher.data, level.teacher.dtype, level.teacher.at(task.sample, row, 0), n, t);
      const A factor = task.coefficient * weight * task.inverse_temperature;
      loss += static_cast<double>(weight) *
              row_kl(s, t, n, task.inverse_temperature, factor, level.grad.data != nullptr);
    } else {
      std::memset(s, 0, n * sizeof(A));
    }
    if (level.grad.data)
      store_block(s, level.grad.dtype, level.grad.at(task.sample, row, 0), n, level.grad.data);
  }
  return loss;
}

// Running statistics of a tile's softmaxes.
template <typename A>
struct Statistics {
  A *max_s, *max_t, *sum_s, *sum_t, *cross;

  explicit Statistics(A* at)
      : max_s(at), max_t(at + kTile), sum_s(at + 2 * kTile), sum_t(at + 3 * kTile), cross(at + 4 * kTile) {}

  // Adds `depth` entries of eight softmaxes; s and t have kTile numbers per entry.
  void add(const A* s, const A* t, int depth, int lane, A inverse_temperature, bool is_first) {
    using V = Vec<A>;
    V highest_s = V::load(s), highest_t = V::load(t);
    for (int k = 1; k < depth; ++k) {
      highest_s = V::max(highest_s, V::load(s + k * kTile));
      highest_t = V::max(highest_t, V::load(t + k * kTile));
    }
    const V inverse = V::set1(inverse_temperature);
    V total_s = V::set1(0), total_t = V::set1(0), total = V::set1(0);
    if (!is_first) {  // makes the earlier sums relative to the new maximum
      const V old_s = V::load(max_s + lane), old_t = V::load(max_t + lane);
      highest_s = V::max(highest_s, old_s);
      highest_t = V::max(highest_t, old_t);
      const V shift_s = (old_s - highest_s) * inverse, shift_t = (old_t - highest_t) * inverse;
      const V shrink_t = shift_t.exp();
      total_s = V::load(sum_s + lane) * shift_s.exp();
      total_t = V::load(sum_t + lane) * shrink_t;
      total = V::fma(shift_t - shift_s, total_t, V::load(cross + lane) * shrink_t);
    }
    for (int k = 0; k < depth; ++k) {
      const V ds = (V::load(s + k * kTile) - highest_s) * inverse;
      const V dt = (V::load(t + k * kTile) - highest_t) * inverse;
      const V et = dt.exp();
      total_s = total_s + ds.exp();
      total_t = total_t + et;
      total = V::fma(et, dt - ds, total);
    }
    highest_s.store(max_s + lane);
    highest_t.store(max_t + lane);
    total_s.store(sum_s + lane);
    total_t.store(sum_t + lane);
    total.store(cross + lane);
  }
};

// Entries begin..begin + depth of `count` adjacent rows.
template <typename A>
inline void load_tile(const Strided<const void>& from, int64_t sample, int64_t row, int64_t begin, int depth,
                      int64_t count, A* out) {
  for (int k = 0; k < depth; ++k)
    load_block(from.data, from.dtype, from.at(sample, row, begin + k), count, out + k * kTile);
}

template <typename A>
inline void tile_gradient(const Task<A>& task, int64_t row, int64_t count, const Statistics<A>& stats,
                          const A* factors) {
  using V = Vec<A>;
  const Level& level = *task.level;
  A *s = task.scratch, *t = s + kChunk * kTile;
  const V inverse = V::set1(task.inverse_temperature), zero = V::set1(0);
  for (int64_t begin = 0; begin < level.entries; begin += kChunk) {
    const int depth = static_cast<int>(level.entries - begin < kChunk ? level.entries - begin : kChunk);
    load_tile(level.student, task.sample, row, begin, depth, count, s);
    load_tile(level.teacher, task.sample, row, begin, depth, count, t);
    for (int lane = 0; lane < count; lane += 8) {
      const V factor = V::load(factors + lane);
      const V max_s = V::load(stats.max_s + lane), max_t = V::load(stats.max_t + lane);
      const V share_s = factor / V::load(stats.sum_s + lane), share_t = factor / V::load(stats.sum_t + lane);
      const auto left_out = (factor <= zero) & (zero <= factor);
      for (int k = 0; k < depth; ++k) {
        const V es = ((V::load(s + k * kTile + lane) - max_s) * inverse).exp();
        const V et = ((V::load(t + k * kTile + lane) - max_t) * inverse).exp();
        V::select(left_out, zero, es * share_s - et * share_t).store(s + k * kTile + lane);
      }
    }
    for (int k = 0; k < depth; ++k)
      store_block(s + k * kTile, level.grad.dtype, level.grad.at(task.sample, row, begin + k), count,
                  level.grad.data);
  }
}

// The loss of rows first..last (kTile at most), which are adjacent. Scratch: kTileRows rows of kTile numbers.
template <typename A>
double rows_adjacent(const Task<A>& task, int64_t first, int64_t last) {
  const Level& level = *task.level;
  const int64_t count = last - first;
  A *s = task.scratch, *t = s + kChunk * kTile, *factors = t + kChunk * kTile;
  Statistics<A> stats(factors + kTile);
  for (int i = 0; i < kTileRows * kTile; ++i) task.scratch[i] = 0;
  bool any = false;
  for (int64_t i = 0; i < count; ++i) {
    const A weight = task.weight(first + i);
    factors[i] = weight == 0 ? A(0) : task.coefficient * weight * task.inverse_temperature;
    any = any || weight != 0;
  }
  double loss = 0;
  for (int64_t begin = 0; any && begin < level.entries; begin += kChunk) {
    const int depth = static_cast<int>(level.entries - begin < kChunk ? level.entries - begin : kChunk);
    load_tile(level.student, task.sample, first, begin, depth, count, s);
    load_tile(level.teacher, task.sample, first, begin, depth, count, t);
    for (int lane = 0; lane < count; lane += 8)
      stats.add(s + lane, t + lane, depth, lane, task.inverse_temperature, begin == 0);
  }
  for (int64_t i = 0; any && i < count; ++i) {
    const A weight = task.weight(first + i);
    const A kl = stats.cross[i] / stats.sum_t[i] + (std::log(stats.sum_s[i]) - std::log(stats.sum_t[i]));
    if (weight != 0) loss += static_cast<double>(weight) * static_cast<double>(kl);
  }
  if (level.grad.data) tile_gradient(task, first, count, stats, factors);
  return loss;
}
