// The input of a kernel of multi-scale deformable attention: sizes and raw pointers, the same on every
// device.
//
// All three ops are one problem. Query m has rows row_begin(m) .. row_end(m); each row reads one value batch
// at its own references with the query's offsets and weights. The drop-in and the fused op have exactly one
// row a query. An output is the mean over the rows of its queries: one query in the ragged op, else one of
// each of the `queues` consecutive batch entries of a sample.
#pragma once

#include <cstdint>

#include "../core/dispatch.h"
#include "ms_deform_attn_math.h"

namespace bevkd2::msda {

struct Level {
  int height, width, start;
};

template <typename T>
struct Problem {
  using A = accumulate_t<T>;

  int64_t batches, pixels;    // value is (batches, pixels, heads, width)
  int64_t queries;            // of all batches together
  int64_t queries_per_batch;  // without row_value: query m reads batch m / queries_per_batch
  int64_t rows;
  int queues;  // queries of an output
  int heads, width, levels, points;
  ReferenceRule rule;
  bool softmax;  // weights are logits

  const T* value;
  const A* references;        // (rows, rule.count, rule.dims)
  const A* offsets;           // (queries, heads, levels, points, 2)
  const A* weights;           // (queries, heads, levels, points)
  const int64_t* row_splits;  // (queries + 1) or null: one row a query
  const int64_t* row_value;   // (rows) or null

  BEVKD2_HOST_DEVICE int samples() const { return levels * points; }  // of one head
  BEVKD2_HOST_DEVICE int64_t pixel_stride() const { return static_cast<int64_t>(heads) * width; }
  BEVKD2_HOST_DEVICE int64_t batch_stride() const { return pixels * pixel_stride(); }
  BEVKD2_HOST_DEVICE int64_t row_begin(int64_t query) const { return row_splits ? row_splits[query] : query; }
  BEVKD2_HOST_DEVICE int64_t row_end(int64_t query) const {
    return row_splits ? row_splits[query + 1] : query + 1;
  }
  BEVKD2_HOST_DEVICE int64_t outputs() const { return queries / queues; }
  BEVKD2_HOST_DEVICE int64_t query_of(int64_t output, int queue) const {
    if (queues == 1) return output;
    const int64_t sample = output / queries_per_batch;
    return output + (sample * (queues - 1) + queue) * queries_per_batch;
  }
  BEVKD2_HOST_DEVICE int64_t output_of(int64_t query) const {
    if (queues == 1) return query;
    const int64_t batch = query / queries_per_batch;
    return query - (batch - batch / queues) * queries_per_batch;
  }
  // The weight of a row in its output.
  BEVKD2_HOST_DEVICE A share_of(int64_t query) const {
    const int64_t count = row_splits ? row_end(query) - row_begin(query) : queues;
    return count > 1 ? A(1) / A(count) : A(1);
  }
  BEVKD2_HOST_DEVICE int64_t batch_of(int64_t row) const {
    return row_value ? row_value[row] : row / queries_per_batch;
  }
  BEVKD2_HOST_DEVICE const A* references_of(int64_t row) const {
    return references ? references + row * rule.count * rule.dims : nullptr;
  }
};

// Where the gradients go; null means not wanted. `value` is in the accumulate type.
template <typename T>
struct Gradients {
  using A = accumulate_t<T>;
  const T* out;      // (outputs, heads * width)
  const A* weights;  // gradient of the returned weights, or null
  A* value;
  A* references;
  A* offsets;
  A* logits;
  bool deterministic;  // value's gradient must be bitwise reproducible

  BEVKD2_HOST_DEVICE bool sampling() const { return references || offsets || logits; }
};

}  // namespace bevkd2::msda
