// Weighted squared distance of one level, as rows: what the kernels of all devices read. No tensors here.
#pragma once

#include <cstdint>

#include "../core/macros.h"

namespace bevkd2::distill {

// `samples` times `rows` rows of `length` entries, all one behind the other in student, teacher and grad.
// Maps in NCHW have a row a channel, channels-last ones (and cells with their entries) a row a pixel. Row and
// column weights are of the arithmetic's type; null is 1 everywhere. An entry weighs the product of both.
struct L2Level {
  const void* student;
  const void* teacher;
  void* grad;  // in the student's type; null: not wanted
  const void* row_weights;
  const void* column_weights;
  int64_t row_stride, column_stride;  // from one sample's weights to the next one's
  int64_t rows, length;
  int64_t segments;    // parts of a row; 1 unless a row is longer than a chunk
  int64_t chunk_rows;  // whole rows in a chunk; 1 where a row has several segments
  int64_t chunks;      // in a sample
  int64_t first;       // number of the level's first chunk
};

// The part of a level that one task handles: always of one sample, so that sums depend on the data alone.
struct L2Chunk {
  int64_t sample;
  int64_t row_begin, row_end;
  int64_t begin, end;  // entries of each of the rows
};

// Divides a level's samples into chunks of about `size` entries; returns the number after the last one.
inline int64_t plan_chunks(L2Level& level, int64_t samples, int64_t size, int64_t first) {
  const int64_t length = level.length > 0 ? level.length : 1;
  level.segments = (length + size - 1) / size;
  level.chunk_rows = level.segments > 1 ? 1 : size / length;
  level.chunks = (level.rows + level.chunk_rows - 1) / level.chunk_rows * level.segments;
  if (level.length == 0) level.chunks = 0;
  level.first = first;
  return first + samples * level.chunks;
}

// `number` counts the chunks of all levels.
BEVKD2_HOST_DEVICE L2Chunk chunk_of(const L2Level& level, int64_t number) {
  const int64_t local = number - level.first, in_sample = local % level.chunks;
  const int64_t row = in_sample / level.segments * level.chunk_rows, segment = in_sample % level.segments;
  const int64_t row_end = row + level.chunk_rows < level.rows ? row + level.chunk_rows : level.rows;
  // Equal segments, of a multiple of 64 entries but for the last, so that they begin where lines do.
  const int64_t part = ((level.length + level.segments - 1) / level.segments + 63) / 64 * 64;
  const int64_t begin = segment * part < level.length ? segment * part : level.length;
  const int64_t end = begin + part < level.length ? begin + part : level.length;
  return {local / level.chunks, row, row_end, begin, end};
}

}  // namespace bevkd2::distill
