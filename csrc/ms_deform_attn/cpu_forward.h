// The forward kernel on the CPU. Included inside a namespace by cpu.cpp, after cpu_points.h.

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
    for (int c = 0; c < p.width; c += 8)
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
