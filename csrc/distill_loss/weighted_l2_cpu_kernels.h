// The CPU kernels over Vec<A>, compiled once for each instruction set: included inside a namespace by
// weighted_l2_cpu.cpp.

// The data of one row; grad is null where it is not wanted.
template <typename S, typename T, typename A>
struct Row {
  const S* student;
  const T* teacher;
  const A* columns;
  S* grad;
  A weight;  // of the whole row
  A factor;  // the gradient is factor * weight * d
};

// Sums in four vectors, so that additions need not wait for each other.
template <typename A>
struct Sums {
  Vec<A> v[4];
};

// Eight entries at i; returns sum + w * d^2.
template <bool kColumns, bool kGrad, typename S, typename T, typename A>
inline Vec<A> add_eight(const Row<S, T, A>& row, const Vec<A>& weight, const Vec<A>& factor, int64_t i,
                        const Vec<A>& sum) {
  const Vec<A> d = Vec<A>::load(row.student + i) - Vec<A>::load(row.teacher + i);
  Vec<A> distance = d, weighted = d * weight;
  if constexpr (kColumns) {
    const Vec<A> w = Vec<A>::load(row.columns + i) * weight;
    distance = d.where(Vec<A>::set1(A(0)) < w);  // entries with weight 0 are ignored, even if NaN
    weighted = distance * w;
  }
  if constexpr (kGrad) (weighted * factor).store(row.grad + i);
  return Vec<A>::fma(weighted, distance, sum);
}

// Fewer than eight entries from i on.
template <bool kColumns, bool kGrad, typename S, typename T, typename A>
void add_rest(const Row<S, T, A>& row, const Vec<A>& weight, const Vec<A>& factor, int64_t i, int64_t end,
              Sums<A>& sums) {
  const int64_t n = end - i;
  S s[8] = {}, g[8];
  T t[8] = {};
  A w[8] = {};
  for (int64_t j = 0; j < n; ++j) {
    s[j] = row.student[i + j];
    t[j] = row.teacher[i + j];
    if constexpr (kColumns) w[j] = row.columns[i + j];
  }
  const Row<S, T, A> part{s, t, w, g, row.weight, row.factor};
  sums.v[3] = add_eight<kColumns, kGrad>(part, weight, factor, 0, sums.v[3]);
  if constexpr (kGrad)
    for (int64_t j = 0; j < n; ++j) row.grad[i + j] = g[j];
}

template <bool kColumns, bool kGrad, typename S, typename T, typename A>
void add_row(const Row<S, T, A>& row, int64_t begin, int64_t end, Sums<A>& sums) {
  const Vec<A> weight = Vec<A>::set1(row.weight), factor = Vec<A>::set1(row.factor);
  int64_t i = begin;
  for (; i + 32 <= end; i += 32)
    for (int k = 0; k < 4; ++k)
      sums.v[k] = add_eight<kColumns, kGrad>(row, weight, factor, i + 8 * k, sums.v[k]);
  for (; i + 8 <= end; i += 8) sums.v[0] = add_eight<kColumns, kGrad>(row, weight, factor, i, sums.v[0]);
  if (i < end) add_rest<kColumns, kGrad>(row, weight, factor, i, end, sums);
}

template <bool kColumns, bool kGrad, typename S, typename T, typename A>
double add_rows(const Level& level, const S* student, const T* teacher, const Chunk& chunk, A factor) {
  Sums<A> sums;
  for (Vec<A>& v : sums.v) v = Vec<A>::set1(A(0));
  const A* rows = static_cast<const A*>(level.row_weights);
  const A* columns = static_cast<const A*>(level.column_weights);
  for (int64_t r = chunk.row_begin; r < chunk.row_end; ++r) {
    const int64_t start = (chunk.sample * level.rows + r) * level.length;
    const A weight = rows ? rows[chunk.sample * level.row_stride + r] : A(1);
    S* grad = kGrad ? static_cast<S*>(level.grad) + start : nullptr;
    if (weight == A(0)) {  // ignored, even if NaN
      if constexpr (kGrad)
        std::memset(static_cast<void*>(grad + chunk.begin), 0, (chunk.end - chunk.begin) * sizeof(S));
      continue;
    }
    const Row<S, T, A> row{student + start,
                           teacher + start,
                           kColumns ? columns + chunk.sample * level.column_stride : nullptr,
                           grad,
                           weight,
                           factor};
    add_row<kColumns, kGrad>(row, chunk.begin, chunk.end, sums);
  }
  double total = 0;
  for (const Vec<A>& v : sums.v) total += static_cast<double>(v.sum());
  return total;
}

// The sum of weight * d^2 over a chunk; writes factor * weight * d where the level has a gradient. `student`
// and `teacher` are the level's pointers with their types.
template <typename A, typename S, typename T>
double chunk_loss(const Level& level, const S* student, const T* teacher, const Chunk& chunk, A factor) {
  if (level.column_weights)
    return level.grad ? add_rows<true, true>(level, student, teacher, chunk, factor)
                      : add_rows<true, false>(level, student, teacher, chunk, factor);
  return level.grad ? add_rows<false, true>(level, student, teacher, chunk, factor)
                    : add_rows<false, false>(level, student, teacher, chunk, factor);
}
