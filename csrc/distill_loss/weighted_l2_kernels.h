// Weighted squared distance, a chunk at a time. Included twice by weighted_l2.cpp: in plain C++ and for AVX2.

// One row's data; grad is null where it is not wanted.
template <typename S, typename T>
struct L2Row {
  using A = wide_t<S, T>;
  const S* student;
  const T* teacher;
  const A* columns;
  S* grad;
  A weight;  // of the whole row
  A factor;  // the gradient is factor * weight * d
};

// Sums in four vectors, so that additions need not wait for each other.
template <typename A>
struct L2Sums {
  Vec<A> v[4];
};

// Eight entries at i; returns sum + w * d^2.
template <bool Columns, bool Grad, typename S, typename T, typename A>
inline Vec<A> l2_eight(const L2Row<S, T>& row, const Vec<A>& weight, const Vec<A>& factor, int64_t i,
                       const Vec<A>& sum) {
  const Vec<A> d = Vec<A>::load(row.student + i) - Vec<A>::load(row.teacher + i);
  Vec<A> distance = d, weighted = d * weight;
  if constexpr (Columns) {
    const Vec<A> w = Vec<A>::load(row.columns + i) * weight;
    distance = d.where(Vec<A>::set1(A(0)) < w);  // what weighs nothing may be NaN
    weighted = distance * w;
  }
  if constexpr (Grad) (weighted * factor).store(row.grad + i);
  return Vec<A>::fma(weighted, distance, sum);
}

// Fewer than eight entries from i on.
template <bool Columns, bool Grad, typename S, typename T, typename A>
void l2_rest(const L2Row<S, T>& row, const Vec<A>& weight, const Vec<A>& factor, int64_t i, int64_t end,
             L2Sums<A>& sums) {
  const int64_t n = end - i;
  S s[8] = {}, g[8];
  T t[8] = {};
  A w[8] = {};
  for (int64_t j = 0; j < n; ++j) {
    s[j] = row.student[i + j];
    t[j] = row.teacher[i + j];
    if constexpr (Columns) w[j] = row.columns[i + j];
  }
  const L2Row<S, T> part{s, t, w, g, row.weight, row.factor};
  sums.v[3] = l2_eight<Columns, Grad>(part, weight, factor, 0, sums.v[3]);
  if constexpr (Grad)
    for (int64_t j = 0; j < n; ++j) row.grad[i + j] = g[j];
}

template <bool Columns, bool Grad, typename S, typename T, typename A>
void l2_row(const L2Row<S, T>& row, int64_t begin, int64_t end, L2Sums<A>& sums) {
  const Vec<A> weight = Vec<A>::set1(row.weight), factor = Vec<A>::set1(row.factor);
  int64_t i = begin;
  for (; i + 32 <= end; i += 32)
    for (int k = 0; k < 4; ++k)
      sums.v[k] = l2_eight<Columns, Grad>(row, weight, factor, i + 8 * k, sums.v[k]);
  for (; i + 8 <= end; i += 8) sums.v[0] = l2_eight<Columns, Grad>(row, weight, factor, i, sums.v[0]);
  if (i < end) l2_rest<Columns, Grad>(row, weight, factor, i, end, sums);
}

template <bool Columns, bool Grad, typename S, typename T>
double l2_rows(const L2Level& level, const L2Chunk& chunk, wide_t<S, T> factor) {
  using A = wide_t<S, T>;
  L2Sums<A> sums;
  for (Vec<A>& v : sums.v) v = Vec<A>::set1(A(0));
  const A* rows = static_cast<const A*>(level.row_weights);
  const A* columns = static_cast<const A*>(level.column_weights);
  for (int64_t r = chunk.row_begin; r < chunk.row_end; ++r) {
    const int64_t start = (chunk.sample * level.rows + r) * level.length;
    const A weight = rows ? rows[chunk.sample * level.row_stride + r] : A(1);
    S* grad = Grad ? static_cast<S*>(level.grad) + start : nullptr;
    if (weight == A(0)) {  // not read: it may be NaN
      if constexpr (Grad)
        std::memset(static_cast<void*>(grad + chunk.begin), 0, (chunk.end - chunk.begin) * sizeof(S));
      continue;
    }
    const L2Row<S, T> row{static_cast<const S*>(level.student) + start,
                          static_cast<const T*>(level.teacher) + start,
                          Columns ? columns + chunk.sample * level.column_stride : nullptr,
                          grad,
                          weight,
                          factor};
    l2_row<Columns, Grad>(row, chunk.begin, chunk.end, sums);
  }
  double total = 0;
  for (const Vec<A>& v : sums.v) total += static_cast<double>(v.sum());
  return total;
}

// Sum of weight * d^2 over a chunk; writes factor * weight * d where the level has a gradient.
template <typename S, typename T>
double l2_chunk(const L2Level& level, const L2Chunk& chunk, wide_t<S, T> factor) {
  if (level.column_weights)
    return level.grad ? l2_rows<true, true, S, T>(level, chunk, factor)
                      : l2_rows<true, false, S, T>(level, chunk, factor);
  return level.grad ? l2_rows<false, true, S, T>(level, chunk, factor)
                    : l2_rows<false, false, S, T>(level, chunk, factor);
}
