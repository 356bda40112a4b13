// The CPU kernels over Vec<A>, compiled once for each instruction set: included inside a namespace by
// cpu.cpp.
//
// A query's points (all heads: heads * levels * points of them) are set up eight at a time, then each head
// gathers its points. Every number of a result is computed by one thread in an order that the data alone
// decides, so results are bitwise the same for any number of threads.

// The points of the heads that a task works on. Flat index: head * samples + level * points + point.
template <typename A>
struct Scratch {
  int count;   // points
  int period;  // the tables repeat after so many points: a multiple of eight and of `samples`
  int padded;  // channels of a head, rounded up to eight

  std::vector<A> width, height, last_x, last_y;  // tables, fixed for the call
  std::vector<int32_t> start, row_width;
  std::vector<A> base_x, base_y, scale_x, scale_y;  // tables, of the current row
  std::vector<A> offsets, attention;                // of the current query
  std::vector<int32_t> pixel00, pixel01, pixel10, pixel11, valid;
  std::vector<A> weight00, weight01, weight10, weight11;
  std::vector<A> weight_x0, weight_x1, weight_y0, weight_y1, inside_x0, inside_x1, inside_y0, inside_y1;
  std::vector<A> dots, grad_x, grad_y, grad_attention;  // backward only
  std::vector<A> channels;                              // output, or its gradient: (heads, padded)

  template <typename T>
  Scratch(const Problem<T>& p, const Level* levels, int heads) {
    const int samples = p.samples();
    count = heads * samples;
    const int points = (count + 7) / 8 * 8;
    period = samples;
    while (period % 8 != 0) period += samples;
    padded = (p.width + 7) / 8 * 8;
    for (auto* table : {&width, &height, &last_x, &last_y, &base_x, &base_y, &scale_x, &scale_y})
      table->assign(period, A(0));
    start.assign(period, 0);
    row_width.assign(period, 0);
    offsets.assign(2 * points, A(0));
    for (auto* v : {&pixel00, &pixel01, &pixel10, &pixel11, &valid}) v->assign(points, 0);
    for (auto* v :
         {&attention, &weight00, &weight01, &weight10, &weight11, &weight_x0, &weight_x1, &weight_y0,
          &weight_y1, &inside_x0, &inside_x1, &inside_y0, &inside_y1, &grad_x, &grad_y, &grad_attention})
      v->assign(points, A(0));
    dots.assign(4 * static_cast<size_t>(points), A(0));
    channels.assign(static_cast<size_t>(heads) * padded, A(0));
    for (int i = 0; i < period; ++i) {
      const Level& level = levels[i % samples / p.points];
      width[i] = A(level.width);
      height[i] = A(level.height);
      last_x[i] = A(level.width - 1);
      last_y[i] = A(level.height - 1);
      start[i] = level.start;
      row_width[i] = level.width;
    }
    if (p.rule.dims == 0) set_row(p, 0);
  }

  // Tables of a row. Where offsets are locations they are the same for every row.
  template <typename T>
  void set_row(const Problem<T>& p, int64_t row) {
    const A* references = p.references_of(row);
    const int samples = p.samples();
    for (int i = 0; i < samples; ++i) {
      const Affine<A> t =
          sampling_affine(p.rule, references, i / p.points, i % p.points, p.points, width[i], height[i]);
      base_x[i] = t.base_x;
      base_y[i] = t.base_y;
      scale_x[i] = t.scale_x;
      scale_y[i] = t.scale_y;
    }
    for (auto* table : {&base_x, &base_y, &scale_x, &scale_y})
      for (int i = samples; i < period; ++i) (*table)[i] = (*table)[i - samples];
  }
};

template <typename A>
inline A run_highest(const A* p, int n) {
  A highest = -std::numeric_limits<A>::infinity();
  int i = 0;
  if (n >= 8) {
    Vec<A> v = Vec<A>::load(p);
    for (i = 8; i + 8 <= n; i += 8) v = Vec<A>::max(v, Vec<A>::load(p + i));
    highest = v.highest();
  }
  for (; i < n; ++i) highest = p[i] > highest ? p[i] : highest;
  return highest;
}

template <typename A>
inline A run_sum(const A* p, int n) {
  A sum = 0;
  int i = 0;
  if (n >= 8) {
    Vec<A> v = Vec<A>::load(p);
    for (i = 8; i + 8 <= n; i += 8) v = v + Vec<A>::load(p + i);
    sum = v.sum();
  }
  for (; i < n; ++i) sum += p[i];
  return sum;
}

// Softmax of each run of `samples`, in place; `s` is padded to a multiple of eight.
template <typename A>
inline void softmax_runs(A* s, int count, int samples) {
  for (int begin = 0; begin < count; begin += samples) {
    const A highest = run_highest(s + begin, samples);
    for (int i = begin; i < begin + samples; ++i) s[i] -= highest;
  }
  for (int i = 0; i < count; i += 8) Vec<A>::load(s + i).exp().store(s + i);
  for (int begin = 0; begin < count; begin += samples) {
    const A inverse = A(1) / run_sum(s + begin, samples);
    for (int i = begin; i < begin + samples; ++i) s[i] *= inverse;
  }
}

// Offsets and attention weights of a query, from head `first` on.
template <typename T>
inline void set_query(const Problem<T>& p, int64_t query, int first, Scratch<accumulate_t<T>>& s) {
  const int64_t begin = (query * p.heads + first) * p.samples();
  std::copy_n(p.offsets + 2 * begin, 2 * s.count, s.offsets.data());
  std::copy_n(p.weights + begin, s.count, s.attention.data());
  if (p.softmax) softmax_runs(s.attention.data(), s.count, p.samples());
}

// Corners of every point: indices and weights times attention, and for the backward the separate factors.
template <bool kFactors, typename A>
inline void set_corners(Scratch<A>& s) {
  using V = Vec<A>;
  const V zero = V::set1(A(0)), one = V::set1(A(1)), minus_one = V::set1(A(-1));
  int t = 0;
  for (int i = 0; i < s.count; i += 8) {
    V offset_x, offset_y;
    V::load_pairs(&s.offsets[2 * i], offset_x, offset_y);
    const V x = V::fma(offset_x, V::load(&s.scale_x[t]), V::load(&s.base_x[t]));
    const V y = V::fma(offset_y, V::load(&s.scale_y[t]), V::load(&s.base_y[t]));
    const auto valid =
        (minus_one < x) & (x < V::load(&s.width[t])) & (minus_one < y) & (y < V::load(&s.height[t]));
    const V left = x.floor().where(valid), top = y.floor().where(valid);
    const V right = left + one, bottom = top + one;
    const V dx = x.where(valid) - left, dy = y.where(valid) - top;
    const V last_x = V::load(&s.last_x[t]), last_y = V::load(&s.last_y[t]);
    const V inside_x0 = one.where(valid & (zero <= left)), inside_x1 = one.where(valid & (right <= last_x));
    const V inside_y0 = one.where(valid & (zero <= top)), inside_y1 = one.where(valid & (bottom <= last_y));
    const V weight_x0 = inside_x0 * (one - dx), weight_x1 = inside_x1 * dx;
    const V weight_y0 = inside_y0 * (one - dy), weight_y1 = inside_y1 * dy;
    const V x0 = V::max(left, zero), x1 = V::min(right, last_x), y0 = V::max(top, zero),
            y1 = V::min(bottom, last_y);
    V::store_pixels(x0, y0, &s.start[t], &s.row_width[t], &s.pixel00[i]);
    V::store_pixels(x1, y0, &s.start[t], &s.row_width[t], &s.pixel01[i]);
    V::store_pixels(x0, y1, &s.start[t], &s.row_width[t], &s.pixel10[i]);
    V::store_pixels(x1, y1, &s.start[t], &s.row_width[t], &s.pixel11[i]);
    V::store_mask(valid, &s.valid[i]);
    if (kFactors) {
      weight_x0.store(&s.weight_x0[i]);
      weight_x1.store(&s.weight_x1[i]);
      weight_y0.store(&s.weight_y0[i]);
      weight_y1.store(&s.weight_y1[i]);
      inside_x0.store(&s.inside_x0[i]);
      inside_x1.store(&s.inside_x1[i]);
      inside_y0.store(&s.inside_y0[i]);
      inside_y1.store(&s.inside_y1[i]);
    } else {
      const V attention = V::load(&s.attention[i]);
      const V row0 = attention * weight_y0, row1 = attention * weight_y1;
      (row0 * weight_x0).store(&s.weight00[i]);
      (row0 * weight_x1).store(&s.weight01[i]);
      (row1 * weight_x0).store(&s.weight10[i]);
      (row1 * weight_x1).store(&s.weight11[i]);
    }
    t += 8;
    if (t == s.period) t = 0;
  }
}

// The first n < 8 channels at p; the rest zero.
template <typename A, typename T>
inline Vec<A> load_part(const T* p, int n) {
  A part[8] = {};
  for (int i = 0; i < n; ++i) part[i] = static_cast<A>(p[i]);
  return Vec<A>::load(part);
}

template <typename A, typename T>
inline Vec<A> load_channels(const T* p, int n) {
  return n >= 8 ? Vec<A>::load(p) : load_part<A>(p, n);
}

// out[0 .. kVecs * 8) += sum over points [begin, end) of the weighted corners. `last` is how many channels
// the last vector has (8 unless it is the ragged end of a head whose width is not a multiple of eight).
template <int kVecs, bool kPart, typename T, typename A>
inline void gather(const T* map, int64_t stride, const Scratch<A>& s, int begin, int end, int last, A* out) {
  using V = Vec<A>;
  V even[kVecs], odd[kVecs];
  for (int k = 0; k < kVecs; ++k) {
    even[k] = V::load(out + 8 * k);
    odd[k] = V::set1(A(0));
  }
  const auto load = [last](const T* p) { return kPart ? load_part<A>(p, last) : V::load(p); };
  for (int i = begin; i < end; ++i) {
    if (!s.valid[i]) continue;
    const T* p00 = map + s.pixel00[i] * stride;
    const T* p01 = map + s.pixel01[i] * stride;
    const T* p10 = map + s.pixel10[i] * stride;
    const T* p11 = map + s.pixel11[i] * stride;
    const V w00 = V::set1(s.weight00[i]), w01 = V::set1(s.weight01[i]);
    const V w10 = V::set1(s.weight10[i]), w11 = V::set1(s.weight11[i]);
    for (int k = 0; k < kVecs; ++k) {
      even[k] = V::fma(w00, load(p00 + 8 * k), even[k]);
      odd[k] = V::fma(w01, load(p01 + 8 * k), odd[k]);
      even[k] = V::fma(w10, load(p10 + 8 * k), even[k]);
      odd[k] = V::fma(w11, load(p11 + 8 * k), odd[k]);
    }
  }
  for (int k = 0; k < kVecs; ++k) (even[k] + odd[k]).store(out + 8 * k);
}

template <typename T, typename A>
inline void gather_head(const Problem<T>& p, const T* map, const Scratch<A>& s, int begin, int end, A* out) {
  const int64_t stride = p.pixel_stride();
  int c = 0;
  for (; c + 32 <= p.width; c += 32) gather<4, false>(map + c, stride, s, begin, end, 8, out + c);
  for (; c + 16 <= p.width; c += 16) gather<2, false>(map + c, stride, s, begin, end, 8, out + c);
  for (; c + 8 <= p.width; c += 8) gather<1, false>(map + c, stride, s, begin, end, 8, out + c);
  if (c < p.width) gather<1, true>(map + c, stride, s, begin, end, p.width - c, out + c);
}

template <typename T>
void forward_outputs(const Problem<T>& p, const Level* levels, T* out, accumulate_t<T>* weights,
                     int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  Scratch<A> s(p, levels, p.heads);
  const int samples = p.samples();
  for (int64_t output = begin; output < end; ++output) {
    std::fill(s.channels.begin(), s.channels.end(), A(0));
    for (int queue = 0; queue < p.queues; ++queue) {
      const int64_t query = p.query_of(output, queue);
      set_query(p, query, 0, s);
      if (weights) std::copy_n(s.attention.data(), s.count, weights + query * s.count);
      for (int64_t row = p.row_begin(query); row < p.row_end(query); ++row) {
        if (p.rule.dims != 0) s.set_row(p, row);
        set_corners<false>(s);
        const T* map = p.value + p.batch_of(row) * p.batch_stride();
        for (int h = 0; h < p.heads; ++h)
          gather_head(p, map + h * p.width, s, h * samples, (h + 1) * samples, &s.channels[h * s.padded]);
      }
    }
    const A share = p.share_of(p.query_of(output, 0));
    for (int h = 0; h < p.heads; ++h)
      for (int c = 0; c < p.width; ++c)
        out[(output * p.heads + h) * p.width + c] = static_cast<T>(s.channels[h * s.padded + c] * share);
  }
}

// The gradient of a row of the query, for heads [first, first + heads).
template <typename T>
inline void set_grad(const Problem<T>& p, const T* grad, int64_t query, int first, int heads,
                     Scratch<accumulate_t<T>>& s) {
  using A = accumulate_t<T>;
  const A share = p.share_of(query);
  const int64_t output = p.output_of(query);
  for (int h = 0; h < heads; ++h) {
    const T* from = grad + (output * p.heads + first + h) * p.width;
    for (int c = 0; c < p.width; ++c) s.channels[h * s.padded + c] = static_cast<A>(from[c]) * share;
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
      for (int c = 0; c < width; c += 8) {
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

// From the dots: the gradient of each point in pixels, and grad_attention += that of its attention weight.
template <typename A>
inline void set_sample_grads(Scratch<A>& s) {
  for (int i = 0; i < s.count; ++i) {
    const Corners<A> c{true,
                       0,
                       0,
                       0,
                       0,
                       s.weight_x0[i],
                       s.weight_x1[i],
                       s.weight_y0[i],
                       s.weight_y1[i],
                       s.inside_x0[i],
                       s.inside_x1[i],
                       s.inside_y0[i],
                       s.inside_y1[i]};
    const SampleGrad<A> g = sample_grad(s.dots[4 * i], s.dots[4 * i + 1], s.dots[4 * i + 2],
                                        s.dots[4 * i + 3], s.attention[i], c);
    s.grad_attention[i] += g.attention;
    s.grad_x[i] = g.x;
    s.grad_y[i] = g.y;
  }
}

// d pixel / d offset = scale.
template <typename A>
inline void add_offset_grads(const Scratch<A>& s, A* offsets) {
  int t = 0;
  for (int i = 0; i < s.count; ++i) {
    offsets[2 * i] += s.grad_x[i] * s.scale_x[t];
    offsets[2 * i + 1] += s.grad_y[i] * s.scale_y[t];
    if (++t == s.period) t = 0;
  }
}

// A row's references, summed over heads, levels and points.
template <typename T, typename A>
inline void add_reference_grads(const Problem<T>& p, const Scratch<A>& s, A* references) {
  const int samples = p.samples();
  const A box = A(0.5) / A(p.points);
  for (int i = 0; i < s.count; ++i) {
    const int sample = i % samples;
    A* to = references + reference_index(p.rule, sample / p.points, sample % p.points) * p.rule.dims;
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
  const int samples = p.samples();
  for (int begin = 0; begin < s.count; begin += samples) {
    A weighted = 0;
    if (p.softmax)
      for (int i = begin; i < begin + samples; ++i) weighted += s.attention[i] * s.grad_attention[i];
    for (int i = begin; i < begin + samples; ++i)
      logits[i] =
          p.softmax ? softmax_grad(s.attention[i], s.grad_attention[i], weighted) : s.grad_attention[i];
  }
}

// Gradients of references, offsets and weights for queries [begin, end), which own them.
template <typename T>
void sampling_backward(const Problem<T>& p, const Level* levels, const Gradients<T>& g, int64_t begin,
                       int64_t end) {
  using A = accumulate_t<T>;
  Scratch<A> s(p, levels, p.heads);
  const int samples = p.samples();
  for (int64_t query = begin; query < end; ++query) {
    set_query(p, query, 0, s);
    set_grad(p, g.out, query, 0, p.heads, s);
    if (g.weights)
      std::copy_n(g.weights + query * s.count, s.count, s.grad_attention.data());
    else
      std::fill(s.grad_attention.begin(), s.grad_attention.end(), A(0));
    for (int64_t row = p.row_begin(query); row < p.row_end(query); ++row) {
      if (p.rule.dims != 0) s.set_row(p, row);
      set_corners<true>(s);
      const T* map = p.value + p.batch_of(row) * p.batch_stride();
      for (int h = 0; h < p.heads; ++h) {
        const A* grad = &s.channels[h * s.padded];
        if (p.width == 32)
          dot_head<32>(p, map + h * 32, grad, s, h * samples, (h + 1) * samples);
        else
          dot_head<0>(p, map + h * p.width, grad, s, h * samples, (h + 1) * samples);
      }
      set_sample_grads(s);
      if (g.offsets) add_offset_grads(s, g.offsets + query * 2 * s.count);
      if (g.references) add_reference_grads(p, s, g.references + row * p.rule.count * p.rule.dims);
    }
    if (g.logits) store_logit_grads(p, s, g.logits + query * s.count);
  }
}

// map[corner] += weight * grad for the points of a head.
template <int kWidth, typename A>
inline void scatter_head(A* map, int64_t stride, int run_width, const A* grad, const Scratch<A>& s, int begin,
                         int end) {
  using V = Vec<A>;
  const int width = kWidth ? kWidth : run_width;
  const auto add = [&](A* to, A weight) {
    int c = 0;
    for (; c + 8 <= width; c += 8) V::fma(V::set1(weight), V::load(grad + c), V::load(to + c)).store(to + c);
    for (; c < width; ++c) to[c] += weight * grad[c];
  };
  for (int i = begin; i < end; ++i) {
    if (!s.valid[i]) continue;
    add(map + s.pixel00[i] * stride, s.weight00[i]);
    add(map + s.pixel01[i] * stride, s.weight01[i]);
    add(map + s.pixel10[i] * stride, s.weight10[i]);
    add(map + s.pixel11[i] * stride, s.weight11[i]);
  }
}

// Gradient of one value batch for heads [first, first + heads): a task that owns them. `rows` are the batch's
// rows and the query of each, in ascending order.
template <typename T>
void value_backward(const Problem<T>& p, const Level* levels, const Gradients<T>& g, int64_t batch, int first,
                    int heads, const RowRange& rows) {
  using A = accumulate_t<T>;
  Scratch<A> s(p, levels, heads);
  const int samples = p.samples();
  int64_t current = -1;
  A* map = g.value + batch * p.batch_stride() + first * p.width;
  for (int64_t n = 0; n < rows.size; ++n) {
    const int64_t row = rows.row(n), query = rows.query(n);
    if (query != current) {
      set_query(p, query, first, s);
      set_grad(p, g.out, query, first, heads, s);
      current = query;
    }
    if (p.rule.dims != 0) s.set_row(p, row);
    set_corners<false>(s);
    for (int h = 0; h < heads; ++h) {
      const A* grad = &s.channels[h * s.padded];
      if (p.width == 32)
        scatter_head<32>(map + h * 32, p.pixel_stride(), 32, grad, s, h * samples, (h + 1) * samples);
      else
        scatter_head<0>(map + h * p.width, p.pixel_stride(), p.width, grad, s, h * samples,
                        (h + 1) * samples);
    }
  }
}
