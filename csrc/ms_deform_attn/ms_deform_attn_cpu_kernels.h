// The CPU kernels over Vec<A>, compiled once for each instruction set: included inside a namespace by
// ms_deform_attn_cpu.cpp.
#include "ms_deform_attn_cpu_points.h"

// ---- forward ----

// out[0 .. kVecs * size) += sum over points [begin, end) of the weighted corners. kPart: the last vector has
// only `last` channels, the ragged end of a head whose width is not a multiple of the vectors' size.
template <int kVecs, bool kPart, typename T, typename A>
inline void gather(const T* map, int64_t stride, const Scratch<A>& s, int begin, int end, int last, A* out) {
  using V = Vec<A>;
  V even[kVecs], odd[kVecs];
  for (int k = 0; k < kVecs; ++k) {
    even[k] = V::load(out + V::size * k);
    odd[k] = V::set1(A(0));
  }
  const auto load = [last](const T* p, int k) {
    return kPart && k == kVecs - 1 ? V::load_part(p + V::size * k, last) : V::load(p + V::size * k);
  };
  for (int i = begin; i < end; ++i) {
    if (!s.valid[i]) continue;
    const T* p00 = map + s.pixel00[i] * stride;
    const T* p01 = map + s.pixel01[i] * stride;
    const T* p10 = map + s.pixel10[i] * stride;
    const T* p11 = map + s.pixel11[i] * stride;
    const V w00 = V::set1(s.weight00[i]), w01 = V::set1(s.weight01[i]);
    const V w10 = V::set1(s.weight10[i]), w11 = V::set1(s.weight11[i]);
    for (int k = 0; k < kVecs; ++k) {
      even[k] = V::fma(w00, load(p00, k), even[k]);
      odd[k] = V::fma(w01, load(p01, k), odd[k]);
      even[k] = V::fma(w10, load(p10, k), even[k]);
      odd[k] = V::fma(w11, load(p11, k), odd[k]);
    }
  }
  for (int k = 0; k < kVecs; ++k) (even[k] + odd[k]).store(out + V::size * k);
}

template <typename T, typename A>
inline void gather_head(const Problem<T>& p, const T* map, const Scratch<A>& s, int begin, int end, A* out) {
  constexpr int kSize = Vec<A>::size;
  const int64_t stride = p.pixel_stride();
  int c = 0;
  for (; c + 4 * kSize <= p.width; c += 4 * kSize)
    gather<4, false>(map + c, stride, s, begin, end, kSize, out + c);
  for (; c + 2 * kSize <= p.width; c += 2 * kSize)
    gather<2, false>(map + c, stride, s, begin, end, kSize, out + c);
  const int rest = p.width - c;
  if (rest > kSize)
    gather<2, true>(map + c, stride, s, begin, end, rest - kSize, out + c);
  else if (rest == kSize)
    gather<1, false>(map + c, stride, s, begin, end, kSize, out + c);
  else if (rest > 0)
    gather<1, true>(map + c, stride, s, begin, end, rest, out + c);
}

// Output `output` of heads [first, first + s.heads).
template <typename T>
inline void forward_output(const Problem<T>& p, int64_t output, int first, T* out, accumulate_t<T>* weights,
                           Scratch<accumulate_t<T>>& s) {
  using A = accumulate_t<T>;
  std::fill(s.channels.begin(), s.channels.end(), A(0));
  for (int queue = 0; queue < p.queues; ++queue) {
    const int64_t query = p.query_of(output, queue);
    set_query(p, query, first, s);
    if (weights) std::copy_n(s.attention.data(), s.count, weights + (query * p.heads + first) * s.samples);
    for (int64_t row = p.row_begin(query); row < p.row_end(query); ++row) {
      s.set_row(p, row);
      set_corners<true, false>(s);
      const T* map = p.value + p.batch_of(row) * p.batch_stride() + first * p.width;
      prefetch_corners(p, map, s);
      for (int h = 0; h < s.heads; ++h)
        gather_head(p, map + h * p.width, s, h * s.samples, (h + 1) * s.samples, s.head_channels(h));
    }
  }
  const Vec<A> share = Vec<A>::set1(p.share_of(p.query_of(output, 0)));
  for (int h = 0; h < s.heads; ++h) {
    T* to = out + (output * p.heads + first + h) * p.width;
    const A* channels = s.head_channels(h);
    for (int c = 0; c < p.width; c += Vec<A>::size)
      store_channels(Vec<A>::load(channels + c) * share, to + c, p.width - c);
  }
}

// Works through tasks of the plan.
template <typename T>
void forward_tasks(const Problem<T>& p, const Level* levels, T* out, accumulate_t<T>* weights,
                   const Plan& plan, Tasks& tasks) {
  Scratch<accumulate_t<T>> s(p, levels, plan.heads);
  for (int64_t task = tasks.take(); task >= 0; task = tasks.take()) {
    const Task t = plan.task(task);
    for (int64_t i = t.begin; i < t.end; ++i) forward_output(p, plan.order[i], t.first_head, out, weights, s);
  }
}

// ---- backward ----
//
// kSampling: gradients of references, offsets and weights. kValue: gradient of value. Both in one pass share
// softmax and coordinates; each gradient is bitwise the same in one pass or two.

// The gradient of a row of the query, for heads [first, first + s.heads).
template <typename T>
inline void set_grad(const Problem<T>& p, const T* grad, int64_t query, int first,
                     Scratch<accumulate_t<T>>& s) {
  using A = accumulate_t<T>;
  const Vec<A> share = Vec<A>::set1(p.share_of(query));
  const int64_t output = p.output_of(query);
  for (int h = 0; h < s.heads; ++h) {
    const T* from = grad + (output * p.heads + first + h) * p.width;
    for (int c = 0; c < p.width; c += Vec<A>::size)
      (load_channels<A>(from + c, p.width - c) * share).store(s.head_channels(h) + c);
  }
}

// dots[4 i ..] = <grad, corner> for the four corners of each point of a head. kWidth: channels, 0 where only
// known at run time.
template <int kWidth, typename T, typename A>
inline void dot_head(const Problem<T>& p, const T* map, const A* grad, Scratch<A>& s, int begin, int end) {
  using V = Vec<A>;
  const int64_t stride = p.pixel_stride();
  const int width = kWidth ? kWidth : p.width;
  for (int i = begin; i < end; ++i) {
    V d00 = V::set1(A(0)), d01 = d00, d10 = d00, d11 = d00;
    if (s.valid[i]) {
      const T* p00 = map + s.pixel00[i] * stride;
      const T* p01 = map + s.pixel01[i] * stride;
      const T* p10 = map + s.pixel10[i] * stride;
      const T* p11 = map + s.pixel11[i] * stride;
      for (int c = 0; c < width; c += V::size) {
        const V g = V::load(grad + c);
        d00 = V::fma(g, load_channels<A>(p00 + c, width - c), d00);
        d01 = V::fma(g, load_channels<A>(p01 + c, width - c), d01);
        d10 = V::fma(g, load_channels<A>(p10 + c, width - c), d10);
        d11 = V::fma(g, load_channels<A>(p11 + c, width - c), d11);
      }
    }
    V::store_sums(d00, d01, d10, d11, &s.dots[4 * i]);
  }
}

// map[corner] += weight * grad for the points of a head.
template <int kWidth, typename T, typename A>
inline void scatter_head(const Problem<T>& p, A* map, const A* grad, const Scratch<A>& s, int begin,
                         int end) {
  using V = Vec<A>;
  const int64_t stride = p.pixel_stride();
  const int width = kWidth ? kWidth : p.width;
  const auto add = [&](A* to, A weight) {
    const V w = V::set1(weight);
    for (int c = 0; c < width; c += V::size)
      store_channels(V::fma(w, V::load(grad + c), load_channels<A>(to + c, width - c)), to + c, width - c);
  };
  for (int i = begin; i < end; ++i) {
    if (!s.valid[i]) continue;
    add(map + s.pixel00[i] * stride, s.weight00[i]);
    add(map + s.pixel01[i] * stride, s.weight01[i]);
    add(map + s.pixel10[i] * stride, s.weight10[i]);
    add(map + s.pixel11[i] * stride, s.weight11[i]);
  }
}

// From the dots: the gradient of each point in pixels, grad_attention += that of its attention weight, and
// grad_offsets += that of its offset (d pixel / d offset = scale). sample_grad of ms_deform_attn_math.h.
template <typename A>
inline void add_sample_grads(Scratch<A>& s) {
  using V = Vec<A>;
  int t = 0;
  for (int i = 0; i < s.count; i += V::size) {
    V t00, t01, t10, t11;
    V::load_quads(&s.dots[4 * i], t00, t01, t10, t11);
    const V weight_x0 = V::load(&s.weight_x0[i]), weight_x1 = V::load(&s.weight_x1[i]);
    const V weight_y0 = V::load(&s.weight_y0[i]), weight_y1 = V::load(&s.weight_y1[i]);
    const V column0 = V::fma(weight_y0, t00, weight_y1 * t10);
    const V column1 = V::fma(weight_y0, t01, weight_y1 * t11);
    const V row0 = V::fma(weight_x0, t00, weight_x1 * t01);
    const V row1 = V::fma(weight_x0, t10, weight_x1 * t11);
    const V attention = V::load(&s.attention[i]);
    const V x = attention * (V::load(&s.inside_x1[i]) * column1 - V::load(&s.inside_x0[i]) * column0);
    const V y = attention * (V::load(&s.inside_y1[i]) * row1 - V::load(&s.inside_y0[i]) * row0);
    x.store(&s.grad_x[i]);
    y.store(&s.grad_y[i]);
    const V grad = V::fma(weight_x0, column0, weight_x1 * column1);
    (V::load(&s.grad_attention[i]) + grad).store(&s.grad_attention[i]);
    V offset_x, offset_y;
    V::load_pairs(&s.grad_offsets[2 * i], offset_x, offset_y);
    V::store_pairs(V::fma(x, V::load(&s.scale_x[t]), offset_x), V::fma(y, V::load(&s.scale_y[t]), offset_y),
                   &s.grad_offsets[2 * i]);
    t += V::size;
    if (t == s.period) t = 0;
  }
}

// A row's references, summed over heads, levels and points.
template <typename T, typename A>
inline void set_reference_grads(const Problem<T>& p, const Scratch<A>& s, A* references) {
  const A box = A(0.5) / A(p.points);
  std::fill_n(references, p.rule.count * p.rule.dims, A(0));
  for (int i = 0; i < s.count; ++i) {
    const int sample = i % s.samples;
    A* to = references + s.reference[sample];
    const A x = s.grad_x[i] * s.width[sample], y = s.grad_y[i] * s.height[sample];
    to[0] += x;
    to[1] += y;
    if (p.rule.dims == 4) {
      to[2] += x * s.offsets[2 * i] * box;
      to[3] += y * s.offsets[2 * i + 1] * box;
    }
  }
}

template <typename T, typename A>
inline void store_logit_grads(const Problem<T>& p, const Scratch<A>& s, A* logits) {
  for (int begin = 0; begin < s.count; begin += s.samples) {
    A weighted = 0;
    if (p.softmax)
      for (int i = begin; i < begin + s.samples; ++i) weighted += s.attention[i] * s.grad_attention[i];
    for (int i = begin; i < begin + s.samples; ++i)
      logits[i] =
          p.softmax ? softmax_grad(s.attention[i], s.grad_attention[i], weighted) : s.grad_attention[i];
  }
}

template <bool kSampling, bool kValue, int kWidth, typename T>
inline void walk_heads(const Problem<T>& p, const Gradients<T>& g, int64_t at, Scratch<accumulate_t<T>>& s) {
  for (int h = 0; h < s.heads; ++h) {
    const int begin = h * s.samples, end = begin + s.samples;
    const int64_t head_at = at + h * p.width;
    if (kSampling) dot_head<kWidth>(p, p.value + head_at, s.head_channels(h), s, begin, end);
    if (kValue) scatter_head<kWidth>(p, g.value + head_at, s.head_channels(h), s, begin, end);
  }
}

template <bool kSampling, bool kValue, typename T>
inline void backward_row(const Problem<T>& p, const Gradients<T>& g, int64_t row, int first,
                         Scratch<accumulate_t<T>>& s) {
  s.set_row(p, row);
  set_corners<kValue, kSampling>(s);
  const int64_t at = p.batch_of(row) * p.batch_stride() + first * p.width;
  if (kSampling) prefetch_corners(p, p.value + at, s);
  if (kValue) prefetch_corners(p, g.value + at, s);
  if (p.width == 32)
    walk_heads<kSampling, kValue, 32>(p, g, at, s);
  else
    walk_heads<kSampling, kValue, 0>(p, g, at, s);
  if (!kSampling) return;
  add_sample_grads(s);
  if (g.references) set_reference_grads(p, s, g.references + row * p.rule.count * p.rule.dims);
}

template <typename T>
inline bool reads_batch(const Problem<T>& p, int64_t query, int64_t batch) {
  for (int64_t row = p.row_begin(query); row < p.row_end(query); ++row)
    if (p.batch_of(row) == batch) return true;
  return false;
}

// The rows of a query that the task is for.
template <bool kSampling, bool kValue, typename T>
inline void backward_query(const Problem<T>& p, const Gradients<T>& g, int64_t query, const Task& t,
                           Scratch<accumulate_t<T>>& s) {
  using A = accumulate_t<T>;
  const int first = t.first_head;
  const int64_t at = (query * p.heads + first) * s.samples;
  set_query(p, query, first, s);
  set_grad(p, g.out, query, first, s);
  if (kSampling) {
    if (g.weights)
      std::copy_n(g.weights + at, s.count, s.grad_attention.data());
    else
      std::fill(s.grad_attention.begin(), s.grad_attention.end(), A(0));
    std::fill(s.grad_offsets.begin(), s.grad_offsets.end(), A(0));
  }
  for (int64_t row = p.row_begin(query); row < p.row_end(query); ++row)
    if (t.batch < 0 || p.batch_of(row) == t.batch) backward_row<kSampling, kValue>(p, g, row, first, s);
  if (!kSampling) return;
  if (g.offsets) std::copy_n(s.grad_offsets.data(), 2 * s.count, g.offsets + 2 * at);
  if (g.logits) store_logit_grads(p, s, g.logits + at);
}

// Works through tasks of the plan, which own what they write.
template <typename T>
void backward_tasks(const Problem<T>& p, const Level* levels, const Gradients<T>& g, bool sampling,
                    bool value, const Plan& plan, Tasks& tasks) {
  Scratch<accumulate_t<T>> s(p, levels, plan.heads);
  for (int64_t task = tasks.take(); task >= 0; task = tasks.take()) {
    const Task t = plan.task(task);
    for (int64_t i = t.begin; i < t.end; ++i) {
      const int64_t query = plan.order[i];
      if (t.batch >= 0 && !reads_batch(p, query, t.batch))
        continue;
      else if (sampling && value)
        backward_query<true, true>(p, g, query, t, s);
      else if (sampling)
        backward_query<true, false>(p, g, query, t, s);
      else
        backward_query<false, true>(p, g, query, t, s);
    }
  }
}
