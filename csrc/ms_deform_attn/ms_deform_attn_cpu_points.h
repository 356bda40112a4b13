// The points of a query on the CPU, over Vec<A>: tables, softmax and corners. Included inside a namespace by
// ms_deform_attn_cpu.cpp, once for each instruction set.
//
// A task works on a fixed number of heads; the points of all of them (flat index: head * samples +
// level * points + point) are set up Vec<A>::size at a time.

template <typename A>
struct Scratch {
  static constexpr int kSize = Vec<A>::size;

  int heads, samples;
  int count;   // points
  int period;  // the tables repeat after so many points: a multiple of kSize and of `samples`
  int padded;  // channels of a head, rounded up to kSize

  std::vector<A> width, height, last_x, last_y;  // tables, fixed for the call
  std::vector<int32_t> start, row_width, reference;
  std::vector<A> base_x, base_y, scale_x, scale_y;  // tables, of the current row
  std::vector<A> offsets, attention;                // of the current query
  std::vector<int32_t> pixel00, pixel01, pixel10, pixel11, valid;
  std::vector<A> weight00, weight01, weight10, weight11;
  std::vector<A> weight_x0, weight_x1, weight_y0, weight_y1, inside_x0, inside_x1, inside_y0, inside_y1;
  std::vector<A> dots, grad_offsets, grad_attention, grad_x, grad_y;  // backward only
  std::vector<A> channels;  // output, or its gradient: (heads, padded)

  template <typename T>
  Scratch(const Problem<T>& p, const Level* levels, int task_heads)
      : heads(task_heads), samples(p.samples()), count(task_heads * p.samples()) {
    const int points = (count + kSize - 1) / kSize * kSize;
    period = samples;
    while (period % kSize != 0) period += samples;
    padded = (p.width + kSize - 1) / kSize * kSize;
    for (auto* v : {&width, &height, &last_x, &last_y, &base_x, &base_y, &scale_x, &scale_y})
      v->assign(period, A(0));
    for (auto* v : {&start, &row_width, &reference}) v->assign(period, 0);
    for (auto* v : {&pixel00, &pixel01, &pixel10, &pixel11, &valid}) v->assign(points, 0);
    for (auto* v :
         {&attention, &weight00, &weight01, &weight10, &weight11, &weight_x0, &weight_x1, &weight_y0,
          &weight_y1, &inside_x0, &inside_x1, &inside_y0, &inside_y1, &grad_attention, &grad_x, &grad_y})
      v->assign(points, A(0));
    for (auto* v : {&offsets, &grad_offsets}) v->assign(2 * points, A(0));
    dots.assign(4 * static_cast<size_t>(points), A(0));
    channels.assign(static_cast<size_t>(heads) * padded, A(0));
    set_tables(p, levels);
  }

  template <typename T>
  void set_tables(const Problem<T>& p, const Level* levels) {
    for (int i = 0; i < period; ++i) {
      const int sample = i % samples;
      const Level& level = levels[sample / p.points];
      width[i] = A(level.width);
      height[i] = A(level.height);
      last_x[i] = A(level.width - 1);
      last_y[i] = A(level.height - 1);
      start[i] = level.start;
      row_width[i] = level.width;
      if (p.rule.dims != 0)
        reference[i] = p.rule.dims * reference_index(p.rule, sample / p.points, sample % p.points);
      base_x[i] = base_y[i] = A(-0.5);  // offsets that are locations are the same for every row
      scale_x[i] = p.rule.dims == 0 ? width[i] : A(1);
      scale_y[i] = p.rule.dims == 0 ? height[i] : A(1);
    }
  }

  // sampling_affine of ms_deform_attn_math.h, for every sample of a row.
  template <typename T>
  void set_row(const Problem<T>& p, int64_t row) {
    using V = Vec<A>;
    if (p.rule.dims == 0) return;
    const A* from = p.references_of(row);
    const V half = V::set1(A(0.5)), box = V::set1(A(0.5) / A(p.points));
    for (int i = 0; i < period; i += kSize) {
      const V w = V::load(&width[i]), h = V::load(&height[i]);
      (V::gather(from, &reference[i]) * w - half).store(&base_x[i]);
      (V::gather(from + 1, &reference[i]) * h - half).store(&base_y[i]);
      if (p.rule.dims != 4) continue;
      (V::gather(from + 2, &reference[i]) * box * w).store(&scale_x[i]);
      (V::gather(from + 3, &reference[i]) * box * h).store(&scale_y[i]);
    }
  }

  A* head_channels(int head) { return channels.data() + static_cast<size_t>(head) * padded; }
};

template <typename A>
inline A run_highest(const A* p, int n) {
  A highest = -std::numeric_limits<A>::infinity();
  constexpr int kSize = Vec<A>::size;
  int i = 0;
  if (n >= kSize) {
    Vec<A> v = Vec<A>::load(p);
    for (i = kSize; i + kSize <= n; i += kSize) v = Vec<A>::max(v, Vec<A>::load(p + i));
    highest = v.highest();
  }
  for (; i < n; ++i) highest = p[i] > highest ? p[i] : highest;
  return highest;
}

template <typename A>
inline A run_sum(const A* p, int n) {
  A sum = 0;
  constexpr int kSize = Vec<A>::size;
  int i = 0;
  if (n >= kSize) {
    Vec<A> v = Vec<A>::load(p);
    for (i = kSize; i + kSize <= n; i += kSize) v = v + Vec<A>::load(p + i);
    sum = v.sum();
  }
  for (; i < n; ++i) sum += p[i];
  return sum;
}

// Softmax of each run of `samples`, in place; `s` is padded to a multiple of Vec<A>::size.
template <typename A>
inline void softmax_runs(A* s, int count, int samples) {
  for (int begin = 0; begin < count; begin += samples) {
    const A highest = run_highest(s + begin, samples);
    for (int i = begin; i < begin + samples; ++i) s[i] -= highest;
  }
  for (int i = 0; i < count; i += Vec<A>::size) Vec<A>::load(s + i).exp().store(s + i);
  for (int begin = 0; begin < count; begin += samples) {
    const A inverse = A(1) / run_sum(s + begin, samples);
    for (int i = begin; i < begin + samples; ++i) s[i] *= inverse;
  }
}

// Offsets and attention weights of a query, from head `first` on.
template <typename T>
inline void set_query(const Problem<T>& p, int64_t query, int first, Scratch<accumulate_t<T>>& s) {
  const int64_t begin = (query * p.heads + first) * s.samples;
  std::copy_n(p.offsets + 2 * begin, 2 * s.count, s.offsets.data());
  std::copy_n(p.weights + begin, s.count, s.attention.data());
  if (p.softmax) softmax_runs(s.attention.data(), s.count, s.samples);
}

// Corners of every point: indices and weights times attention, and for the gradients of points the separate
// factors.
template <bool kWeights, bool kFactors, typename A>
inline void set_corners(Scratch<A>& s) {
  using V = Vec<A>;
  const V zero = V::set1(A(0)), one = V::set1(A(1)), minus_one = V::set1(A(-1));
  int t = 0;
  for (int i = 0; i < s.count; i += V::size) {
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
    }
    if (kWeights) {
      const V attention = V::load(&s.attention[i]);
      const V row0 = attention * weight_y0, row1 = attention * weight_y1;
      (row0 * weight_x0).store(&s.weight00[i]);
      (row0 * weight_x1).store(&s.weight01[i]);
      (row1 * weight_x0).store(&s.weight10[i]);
      (row1 * weight_x1).store(&s.weight11[i]);
    }
    t += V::size;
    if (t == s.period) t = 0;
  }
}

// Prefetches the first and the last cache line of the corners of every point: more loads are then in flight
// than in a loop over the points, which waits for each. `map` starts at the task's first
// head. Always inline: gcc drops calls of a function that does nothing but prefetch.
template <typename T, typename M, typename A>
BEVKD2_ALWAYS_INLINE void prefetch_corners(const Problem<T>& p, const M* map, const Scratch<A>& s) {
  const int64_t stride = p.pixel_stride(), last = std::max(p.width - 1, 0);
  for (int h = 0; h < s.heads; ++h) {
    const M* head = map + h * p.width;
    for (int i = h * s.samples; i < (h + 1) * s.samples; ++i) {
      const M *p00 = head + s.pixel00[i] * stride, *p01 = head + s.pixel01[i] * stride;
      const M *p10 = head + s.pixel10[i] * stride, *p11 = head + s.pixel11[i] * stride;
      __builtin_prefetch(p00);
      __builtin_prefetch(p00 + last);
      __builtin_prefetch(p01);
      __builtin_prefetch(p01 + last);
      __builtin_prefetch(p10);
      __builtin_prefetch(p10 + last);
      __builtin_prefetch(p11);
      __builtin_prefetch(p11 + last);
    }
  }
}

// The first n channels at p; the rest zero.
template <typename A, typename T>
inline Vec<A> load_channels(const T* p, int n) {
  return n >= Vec<A>::size ? Vec<A>::load(p) : Vec<A>::load_part(p, n);
}

template <typename A, typename T>
inline void store_channels(const Vec<A>& v, T* p, int n) {
  n >= Vec<A>::size ? v.store(p) : v.store_part(p, n);
}
