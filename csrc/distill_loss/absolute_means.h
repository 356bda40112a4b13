// Means of |x|^power over channels and over pixels: what the CPU and CUDA kernels share, and the three ops in
// terms of two functions that a device supplies (Backend::forward and Backend::backward).
//
// Features are (B, C, P) views whose pixels or whose channels are adjacent in memory, and are computed as
// rows of adjacent columns: rows are channels in the first case, pixels in the second. A tile of rows and
// columns leaves the sums of its rows and those of its columns; each mean is the sum over its tiles, in their
// order. The gradient of x is (row gradient / columns + column gradient / rows) times sign(x), or 2 x.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../core/macros.h"
#include "layout.h"

namespace bevkd2::distill::absolute_means {

// Rows of adjacent columns.
template <typename T>
struct View {
  T* data;
  int64_t sample_stride, row_stride;
  BEVKD2_HOST_DEVICE T* at(int64_t sample, int64_t row, int64_t column) const {
    return data + sample * sample_stride + row * row_stride + column;
  }
};

struct Shape {
  int64_t samples, rows, columns;
};

// row_means: (B, rows); column_means: (B, columns).
template <typename T>
struct Forward {
  using A = accumulate_t<T>;
  View<const T> features;
  Shape shape;
  bool square;  // else absolute values
  A *row_means, *column_means;
};

// Gradients of means that have none are null. With `add`, the gradient is added to what is there.
template <typename T>
struct Backward {
  using A = accumulate_t<T>;
  View<const T> features;
  View<T> grad;
  Shape shape;
  bool square, add;
  const A *row_gradients, *column_gradients;
};

// A part of a sample; `row_tile` and `column_tile` count the tiles along each side.
struct Tile {
  int64_t sample, row_tile, column_tile;
  int64_t row, rows, column, columns;
};

// Division of all samples into tiles of at most tile_rows and tile_columns.
struct Tiling {
  Shape shape;
  int64_t tile_rows, tile_columns;
  int64_t row_tiles, column_tiles;

  Tiling(const Shape& s, int64_t rows, int64_t columns)
      : shape(s),
        tile_rows(rows),
        tile_columns(columns),
        row_tiles((s.rows + rows - 1) / rows),
        column_tiles((s.columns + columns - 1) / columns) {}

  int64_t count() const { return shape.samples * row_tiles * column_tiles; }
  // Where partial sums lie: those of rows as (B, column tiles, rows), then those of columns as (B, row tiles,
  // columns).
  int64_t row_sums() const { return shape.samples * column_tiles * shape.rows; }
  int64_t column_sums() const { return shape.samples * row_tiles * shape.columns; }

  BEVKD2_HOST_DEVICE Tile tile(int64_t number) const {
    Tile t{};
    t.column_tile = number % column_tiles;
    t.row_tile = number / column_tiles % row_tiles;
    t.sample = number / column_tiles / row_tiles;
    t.row = t.row_tile * tile_rows;
    t.column = t.column_tile * tile_columns;
    t.rows = shape.rows - t.row < tile_rows ? shape.rows - t.row : tile_rows;
    t.columns = shape.columns - t.column < tile_columns ? shape.columns - t.column : tile_columns;
    return t;
  }
  BEVKD2_HOST_DEVICE int64_t row_sum_at(const Tile& t) const {
    return (t.sample * column_tiles + t.column_tile) * shape.rows + t.row;
  }
  BEVKD2_HOST_DEVICE int64_t column_sum_at(const Tile& t) const {
    return (t.sample * row_tiles + t.row_tile) * shape.columns + t.column;
  }
};

// Mean i of the B * count means whose partial sums lie as (B, tiles, count), each over `entries` numbers.
template <typename A>
BEVKD2_HOST_DEVICE A mean_of(const A* sums, int64_t i, int64_t tiles, int64_t count, int64_t entries) {
  const A* from = sums + i / count * tiles * count + i % count;
  double total = 0;
  for (int64_t t = 0; t < tiles; ++t) total += static_cast<double>(from[t * count]);
  return static_cast<A>(total / static_cast<double>(entries));
}

template <typename Backend>
struct Ops {
  static constexpr const char* kOp = "absolute_means";

  static void check(const Tensor& features, int64_t power) {
    STD_TORCH_CHECK(features.dim() == 3, "absolute_means: features must be (B, C, P)");
    STD_TORCH_CHECK(power == 1 || power == 2, "absolute_means: no power ", power);
  }

  // The dimension whose numbers are rows' columns.
  static int64_t last_of(const Tensor& t) { return adjacent(t, 2) || !adjacent(t, 1) ? 2 : 1; }

  template <typename T>
  static View<T> view_of(T* data, const Tensor& t, int64_t last) {
    return {data, t.stride(0), t.stride(3 - last)};
  }

  static Shape shape_of(const Tensor& t, int64_t last) { return {t.size(0), t.size(3 - last), t.size(last)}; }

  static std::tuple<Tensor, Tensor> forward(const Tensor& features, int64_t power) {
    check(features, power);
    const int64_t last = last_of(features);
    const Tensor read = arranged(features, last);
    const ScalarType dtype = accumulate_dtype(features.scalar_type());
    Tensor pixels = torch::stable::new_empty(features, {features.size(0), features.size(2)}, dtype);
    Tensor channels = torch::stable::new_empty(features, {features.size(0), features.size(1)}, dtype);
    Tensor &rows = last == 2 ? channels : pixels, &columns = last == 2 ? pixels : channels;
    dispatch("absolute_means: features", features.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      Forward<T> p{};
      p.features = view_of(static_cast<const T*>(read.const_data_ptr()), read, last);
      p.shape = shape_of(read, last);
      p.square = power == 2;
      p.row_means = static_cast<accumulate_t<T>*>(rows.mutable_data_ptr());
      p.column_means = static_cast<accumulate_t<T>*>(columns.mutable_data_ptr());
      Backend::forward(p, features);
    });
    return {pixels, channels};
  }

  // Writes to `grad`, or adds to it; dimension `last` of both is adjacent.
  static void run_backward(const std::optional<Tensor>& grad_pixels,
                           const std::optional<Tensor>& grad_channels, const Tensor& features,
                           const Tensor& grad, int64_t last, int64_t power, bool add) {
    const Shape shape = shape_of(features, last);
    const ScalarType dtype = accumulate_dtype(features.scalar_type());
    const int64_t pixels = features.size(0) * features.size(2);
    const int64_t channels = features.size(0) * features.size(1);
    const void* of_pixels = data_of(kOp, "the gradient of pixels", grad_pixels, pixels, dtype, features);
    const void* of_channels =
        data_of(kOp, "the gradient of channels", grad_channels, channels, dtype, features);
    dispatch("absolute_means: features", features.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      using A = accumulate_t<T>;
      Backward<T> p{};
      p.features = view_of(static_cast<const T*>(features.const_data_ptr()), features, last);
      p.grad = view_of(static_cast<T*>(grad.mutable_data_ptr()), grad, last);
      p.shape = shape;
      p.square = power == 2;
      p.add = add;
      p.row_gradients = static_cast<const A*>(last == 2 ? of_channels : of_pixels);
      p.column_gradients = static_cast<const A*>(last == 2 ? of_pixels : of_channels);
      Backend::backward(p, features);
    });
  }

  static Tensor backward(const std::optional<Tensor>& grad_pixels, const std::optional<Tensor>& grad_channels,
                         const Tensor& features, int64_t power) {
    check(features, power);
    const int64_t last = last_of(features);
    Writing writing(torch::stable::empty_like(features), last);
    run_backward(grad_pixels, grad_channels, arranged(features, last), writing.target, last, power, false);
    return writing.finish();
  }

  static void add_gradient(const Tensor& gradient, const std::optional<Tensor>& grad_pixels,
                           const std::optional<Tensor>& grad_channels, const Tensor& features,
                           int64_t power) {
    check(features, power);
    const int64_t last = last_of(gradient);
    bool alike = gradient.dim() == 3 && gradient.scalar_type() == features.scalar_type() &&
                 together(gradient, features);
    for (int64_t d = 0; alike && d < 3; ++d) alike = gradient.size(d) == features.size(d);
    STD_TORCH_CHECK(alike && adjacent(gradient, last),
                    "absolute_means: the gradient must be of the features' shape, dtype and device, with "
                    "pixels or channels adjacent");
    run_backward(grad_pixels, grad_channels, arranged(features, last), gradient, last, power, true);
  }

  template <typename Library>
  static void register_all(Library& m) {
    m.impl("absolute_means", TORCH_BOX(&forward));
    m.impl("absolute_means_backward", TORCH_BOX(&backward));
    m.impl("add_absolute_means_gradient_", TORCH_BOX(&add_gradient));
  }
};

}  // namespace bevkd2::distill::absolute_means
