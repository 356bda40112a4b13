// The CPU kernels over Vec<A>, compiled once for each instruction set: included inside a namespace by
// bev_response_cpu.cpp.
#include "block_io.h"

template <typename A>
inline Vec<A> absolute(const Vec<A>& v) {
  return Vec<A>::max(v, Vec<A>::set1(0) - v);
}

template <typename A, typename T>
inline A sum_of_absolutes(const T* p, int64_t n) {
  using V = Vec<A>;
  V sums[4] = {V::set1(0), V::set1(0), V::set1(0), V::set1(0)};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    for (int j = 0; j < 4; ++j) sums[j] = sums[j] + absolute(V::load(p + i + 8 * j));
  for (; i + 8 <= n; i += 8) sums[0] = sums[0] + absolute(V::load(p + i));
  if (i < n) {
    A tail[8] = {};
    load_run(p + i, n - i, tail);
    sums[1] = sums[1] + absolute(V::load(tail));
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

// out[0..n) += |p[0..n)|.
template <typename A, typename T>
inline void add_absolutes(const T* p, int64_t n, A* out) {
  using V = Vec<A>;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) (V::load(out + i) + absolute(V::load(p + i))).store(out + i);
  if (i == n) return;
  A tail[8] = {};
  load_run(p + i, n - i, tail);
  for (int64_t j = 0; i + j < n; ++j) out[i + j] += tail[j] < 0 ? -tail[j] : tail[j];
}

// out[0..n) = mean absolute value over the channels of cells first..first + n; cells of weight 0 are not
// read where channels are adjacent.
template <typename A, typename T>
inline void responses(const Embedding& e, const T* base, int64_t sample, int64_t first, int64_t n,
                      const A* weights, A* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = 0;
  if (e.channels_adjacent) {
    for (int64_t i = 0; i < n; ++i)
      if (!weights || weights[i] != 0)
        out[i] = sum_of_absolutes<A>(base + e.data.at(sample, first + i, 0), e.channels);
  } else {
    for (int64_t c = 0; c < e.channels; ++c) add_absolutes(base + e.data.at(sample, first, c), n, out);
  }
  const A inverse = A(1) / static_cast<A>(e.channels > 0 ? e.channels : 1);
  for (int64_t i = 0; i < n; ++i) out[i] *= inverse;
}

// Calls function(p) with the pointer's type for a dtype that A can hold.
template <typename A, typename F>
inline void typed(const void* base, ScalarType dtype, const F& function) {
  if (dtype == ScalarType::Float) return function(static_cast<const float*>(base));
  if (dtype == ScalarType::Half) return function(static_cast<const Half*>(base));
  if (dtype == ScalarType::BFloat16) return function(static_cast<const BFloat16*>(base));
  if constexpr (std::is_same_v<A, double>) function(static_cast<const double*>(base));
}

// Cells first..first + n (kCells at most) of a sample: the sums of weight * difference^2 and of weight.
template <typename A>
Partial forward_cells(const Forward& p, int64_t sample, int64_t first, int64_t n) {
  A ours[kCells], theirs[kCells];
  const int64_t at = sample * p.cells + first;
  const A* weights = p.weights ? static_cast<const A*>(p.weights) + at : nullptr;
  typed<A>(p.student.data.data, p.student.data.dtype,
           [&](auto* base) { responses(p.student, base, sample, first, n, weights, ours); });
  typed<A>(p.teacher.data.data, p.teacher.data.dtype,
           [&](auto* base) { responses(p.teacher, base, sample, first, n, weights, theirs); });
  A* out = p.differences ? static_cast<A*>(p.differences) + at : nullptr;
  Partial sums;
  for (int64_t i = 0; i < n; ++i) {
    const A weight = weights ? weights[i] : A(1);
    const A difference = weight == 0 ? A(0) : ours[i] - theirs[i];
    sums.squares += static_cast<double>(weight * difference * difference);
    sums.counted += static_cast<double>(weight);
    if (out) out[i] = weight * difference;
  }
  return sums;
}

// gradient * sign(x); the sign of 0 and of NaN is 0.
template <typename A>
inline Vec<A> signed_like(const Vec<A>& gradient, const Vec<A>& x) {
  const Vec<A> zero = Vec<A>::set1(0);
  return gradient.where(zero < x) - gradient.where(x < zero);
}

// Gradients of a run of numbers. `gradient` points to one factor for all, or to one per number (kEach).
template <typename A, bool kEach, typename T>
inline void write_signs(const T* x, const A* gradient, int64_t n, T* out) {
  using V = Vec<A>;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    signed_like(kEach ? V::load(gradient + i) : V::set1(*gradient), V::load(x + i)).store(out + i);
  if (i == n) return;
  A tail[8] = {}, own[8] = {};
  load_run(x + i, n - i, tail);
  for (int64_t j = 0; i + j < n; ++j) own[j] = kEach ? gradient[i + j] : *gradient;
  signed_like(V::load(own), V::load(tail)).store(tail);
  store_run(tail, n - i, out + i);
}

// The gradient of cells first..first + n (kCells at most) of a sample.
template <typename A>
void backward_cells(const Backward& p, int64_t sample, int64_t first, int64_t n) {
  A gradients[kCells];
  const A factor = *static_cast<const A*>(p.upstream) * static_cast<const A*>(p.scales)[sample] /
                   static_cast<A>(p.student.channels);
  const A* differences = static_cast<const A*>(p.differences) + sample * p.cells + first;
  for (int64_t i = 0; i < n; ++i) gradients[i] = factor * differences[i];
  typed<A>(p.student.data.data, p.student.data.dtype, [&](auto* base) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(base)>>;
    T* out = static_cast<T*>(p.grad.data);
    if (p.student.channels_adjacent) {
      for (int64_t i = 0; i < n; ++i)
        write_signs<A, false>(base + p.student.data.at(sample, first + i, 0), gradients + i,
                              p.student.channels, out + p.grad.at(sample, first + i, 0));
    } else {
      for (int64_t c = 0; c < p.student.channels; ++c)
        write_signs<A, true>(base + p.student.data.at(sample, first, c), gradients, n,
                             out + p.grad.at(sample, first, c));
    }
  });
}
