// Runs of numbers of any floating dtype, to and from arrays of the type that is computed in (A). Included
// inside the namespaces of an instruction set, so without a guard; see core/cpu_dispatch.h.
//
// The last numbers of a run go through arrays of eight, so that Vec makes every conversion.

template <typename A, typename T>
inline void load_run(const T* p, int64_t n, A* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) Vec<A>::load(p + i).store(out + i);
  if (i == n) return;
  alignas(T) unsigned char tail[8 * sizeof(T)] = {};
  A numbers[8];
  std::memcpy(tail, p + i, (n - i) * sizeof(T));
  Vec<A>::load(reinterpret_cast<const T*>(tail)).store(numbers);
  std::memcpy(out + i, numbers, (n - i) * sizeof(A));
}

template <typename A, typename T>
inline void store_run(const A* p, int64_t n, T* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) Vec<A>::load(p + i).store(out + i);
  if (i == n) return;
  A numbers[8] = {};
  alignas(T) unsigned char tail[8 * sizeof(T)];
  std::memcpy(numbers, p + i, (n - i) * sizeof(A));
  Vec<A>::load(numbers).store(reinterpret_cast<T*>(tail));
  std::memcpy(out + i, tail, (n - i) * sizeof(T));
}

// out[0..n) = base[at..at + n), where base holds numbers of `dtype`.
template <typename A>
inline void load_block(const void* base, ScalarType dtype, int64_t at, int64_t n, A* out) {
  if (dtype == ScalarType::Float) return load_run(static_cast<const float*>(base) + at, n, out);
  if (dtype == ScalarType::Half) return load_run(static_cast<const Half*>(base) + at, n, out);
  if (dtype == ScalarType::BFloat16) return load_run(static_cast<const BFloat16*>(base) + at, n, out);
  if constexpr (std::is_same_v<A, double>) load_run(static_cast<const double*>(base) + at, n, out);
}

// base[at..at + n) = numbers[0..n), where base holds numbers of `dtype`.
template <typename A>
inline void store_block(const A* numbers, ScalarType dtype, int64_t at, int64_t n, void* base) {
  if (dtype == ScalarType::Half) return store_run(numbers, n, static_cast<Half*>(base) + at);
  if (dtype == ScalarType::BFloat16) return store_run(numbers, n, static_cast<BFloat16*>(base) + at);
  if (dtype == ScalarType::Float) return store_run(numbers, n, static_cast<float*>(base) + at);
  if constexpr (std::is_same_v<A, double>) store_run(numbers, n, static_cast<double*>(base) + at);
}

// The numbers themselves where they are of type A already, else a copy in `scratch`.
template <typename A>
inline const A* as_block(const void* base, ScalarType dtype, int64_t at, int64_t n, A* scratch) {
  constexpr ScalarType own = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  if (dtype == own) return static_cast<const A*>(base) + at;
  load_block(base, dtype, at, n, scratch);
  return scratch;
}
