// The CPU kernels over Vec<A>, compiled once for each instruction set: included inside a namespace by
// absolute_means_cpu.cpp.
#include "block_io.h"

template <bool kSquare, typename A>
inline Vec<A> powered(const Vec<A>& v) {
  return kSquare ? v * v : Vec<A>::max(v, Vec<A>::set1(0) - v);
}

// Returns the sum of n powered numbers, and adds each of them to its column.
template <bool kSquare, typename A, typename T>
inline A add_row(const T* x, int64_t n, A* columns) {
  using V = Vec<A>;
  V sums[4] = {V::set1(0), V::set1(0), V::set1(0), V::set1(0)};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    for (int j = 0; j < 4; ++j) {
      const V v = powered<kSquare>(V::load(x + i + 8 * j));
      sums[j] = sums[j] + v;
      (V::load(columns + i + 8 * j) + v).store(columns + i + 8 * j);
    }
  for (; i + 8 <= n; i += 8) {
    const V v = powered<kSquare>(V::load(x + i));
    sums[0] = sums[0] + v;
    (V::load(columns + i) + v).store(columns + i);
  }
  if (i < n) {
    A tail[8] = {};
    load_run(x + i, n - i, tail);
    const V v = powered<kSquare>(V::load(tail));
    sums[1] = sums[1] + v;
    v.store(tail);
    for (int64_t j = 0; i + j < n; ++j) columns[i + j] += tail[j];
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

// The sums of the rows of a tile, and those of its columns.
template <typename A, typename T>
void sum_tile(const Forward<T>& p, const Tile& tile, A* rows, A* columns) {
  for (int64_t i = 0; i < tile.columns; ++i) columns[i] = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* x = p.features.at(tile.sample, tile.row + r, tile.column);
    rows[r] = p.square ? add_row<true>(x, tile.columns, columns) : add_row<false>(x, tile.columns, columns);
  }
}

// factor * d|x|^power / dx; the sign of 0 and of NaN is 0.
template <bool kSquare, typename A>
inline Vec<A> derived(const Vec<A>& factor, const Vec<A>& x) {
  const Vec<A> zero = Vec<A>::set1(0);
  return kSquare ? factor * (x + x) : factor.where(zero < x) - factor.where(x < zero);
}

// out = (of_row + of_columns) times the derivative, added to out with kAdd. of_columns has n numbers, and
// zeros up to a multiple of eight.
template <bool kSquare, bool kAdd, typename A, typename T>
inline void write_row(const T* x, A of_row, const A* of_columns, int64_t n, T* out) {
  using V = Vec<A>;
  const V row = V::set1(of_row);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const V grad = derived<kSquare>(row + V::load(of_columns + i), V::load(x + i));
    (kAdd ? V::load(out + i) + grad : grad).store(out + i);
  }
  if (i == n) return;
  A numbers[8] = {}, before[8] = {};
  load_run(x + i, n - i, numbers);
  if (kAdd) load_run(out + i, n - i, before);
  (V::load(before) + derived<kSquare>(row + V::load(of_columns + i), V::load(numbers))).store(numbers);
  store_run(numbers, n - i, out + i);
}

template <bool kSquare, bool kAdd, typename A, typename T>
void write_rows(const Backward<T>& p, const Tile& tile, const A* of_columns) {
  const A share = A(1) / static_cast<A>(p.shape.columns);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.row + r;
    const A of_row = p.row_gradients ? share * p.row_gradients[tile.sample * p.shape.rows + row] : A(0);
    write_row<kSquare, kAdd>(p.features.at(tile.sample, row, tile.column), of_row, of_columns, tile.columns,
                             p.grad.at(tile.sample, row, tile.column));
  }
}

// The gradient of a tile.
template <typename A, typename T>
void write_tile(const Backward<T>& p, const Tile& tile) {
  A of_columns[kColumns];  // kColumns is a multiple of eight
  const A share = A(1) / static_cast<A>(p.shape.rows);
  const A* gradients =
      p.column_gradients ? p.column_gradients + tile.sample * p.shape.columns + tile.column : nullptr;
  const int64_t end = (tile.columns + 7) / 8 * 8;
  for (int64_t i = 0; i < end; ++i)
    of_columns[i] = gradients && i < tile.columns ? share * gradients[i] : A(0);
  if (p.square)
    p.add ? write_rows<true, true>(p, tile, of_columns) : write_rows<true, false>(p, tile, of_columns);
  else
    p.add ? write_rows<false, true>(p, tile, of_columns) : write_rows<false, false>(p, tile, of_columns);
}
