// Overlaps of rotated boxes and their suppression on CUDA, in float64.
//
// Overlaps take one thread per pair, with neighbouring threads on neighbouring columns. Most pairs are too
// far apart: their threads compare two circles and write 0.
//
// Suppression is greedy and runs on the device alone. Boxes are sorted by falling score; for each box, 64-bit
// words say which later boxes it would suppress; one block then goes through the words and keeps each box
// that no kept box suppresses. Boxes are handled in slices: a slice also suppresses boxes of later slices,
// which then need no words. The host waits once, at the end, for the number of kept boxes and whether the
// input was valid: the size of the result depends on it.
#include <algorithm>
#include <array>
#include <cmath>

#include "box3d.h"
#include "box3d_cuda_boxes.cuh"

namespace bevkd2::box3d {
namespace {

using Word = unsigned long long;

constexpr int kThreads = 256, kScanThreads = 1024, kBits = 64;
constexpr int64_t kSlice = 1024;  // boxes; a multiple of kBits

// ---- overlaps ----

__global__ void prepare_kernel(const double* rows, int64_t n, int64_t numbers, DeviceBox* out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) out[i] = device_box(rows + i * numbers, numbers);
}

template <Overlap kOverlap>
__device__ double overlap_of(const DeviceBox& a, const DeviceBox& b) {
  if (!near(a, b)) return 0;
  if constexpr (kOverlap == Overlap::kArea) return intersection_area(a.exact(), b.exact()).v;
  if constexpr (kOverlap == Overlap::kIou) return planar_iou(a, b);
  return volume_iou(a.exact(), Exact(a.low), Exact(a.high), b.exact(), Exact(b.low), Exact(b.high)).v;
}

template <Overlap kOverlap>
__global__ void pairwise_kernel(const DeviceBox* a, int64_t n, const DeviceBox* b, int64_t m, double* out) {
  const int64_t pair = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (pair < n * m) out[pair] = overlap_of<kOverlap>(a[pair / m], b[pair % m]);
}

Tensor prepared(const double* boxes, int64_t n, int64_t columns, const Tensor& like, cudaStream_t stream) {
  Tensor out = torch::stable::new_empty(like, {n, kDeviceBoxNumbers});
  cuda::launch(prepare_kernel, cuda::blocks_for(n, kThreads), kThreads, 0, stream, boxes, n, columns,
               static_cast<DeviceBox*>(out.mutable_data_ptr()));
  return out;
}

template <Overlap kOverlap>
void launch_pairs(const Pairs& p, const Tensor& like) {
  const cuda::OnDevice device(like);
  const Tensor rows = prepared(p.a, p.n, columns_of(kOverlap), like, device.stream);
  const Tensor columns = prepared(p.b, p.m, columns_of(kOverlap), like, device.stream);
  cuda::launch(pairwise_kernel<kOverlap>, cuda::blocks_for(p.n * p.m, kThreads), kThreads, 0, device.stream,
               static_cast<const DeviceBox*>(rows.const_data_ptr()), p.n,
               static_cast<const DeviceBox*>(columns.const_data_ptr()), p.m, p.out);
}

// ---- suppression ----

// Boxes by falling score, and what kernels hand on to the next; the counts begin at 0.
struct Sorted {
  int64_t n, words;      // words: of n bits
  const int64_t* order;  // index of each in the input
  DeviceBox* boxes;
  int64_t* labels;
  Word* removed;    // one bit per box
  int64_t* counts;  // how many were kept, and 1 where the input is invalid
};

// Boxes [begin, end) and, for each, the words from first_word on; begin is a multiple of kBits.
struct Slice {
  int64_t begin, end, first_word, span;
  Word* words;

  __device__ Word* row(int64_t i) const { return words + (i - begin) * span - first_word; }
};

__global__ void sort_kernel(Sorted sorted, const double* rows, const double* scores, const int64_t* labels,
                            bool anywhere) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= sorted.n) return;
  const int64_t from = sorted.order[i];
  const double* row = rows + from * kPlanarColumns;
  bool good = scores[from] == scores[from] && row[2] >= 0 && row[3] >= 0;
  for (int64_t k = 0; k < kPlanarColumns; ++k) good = good && magnitude(row[k]) < INFINITY;
  if (!good) sorted.counts[1] = 1;  // benign race: all threads write 1
  DeviceBox box = device_box(row, kPlanarColumns);
  if (anywhere) box.reach = INFINITY;
  sorted.boxes[i] = box;
  sorted.labels[i] = labels[from];
}

__device__ bool suppresses(const Sorted& sorted, const Rule& rule, int64_t i, int64_t j) {
  if (j <= i || j >= sorted.n || sorted.labels[i] != sorted.labels[j]) return false;
  if (!near(sorted.boxes[i], sorted.boxes[j])) return false;
  const double iou = planar_iou(sorted.boxes[i], sorted.boxes[j]);
  return rule.inclusive ? iou >= rule.threshold : iou > rule.threshold;
}

// One warp per word: each lane compares two boxes.
__global__ void suppression_kernel(Sorted sorted, Slice slice, Rule rule) {
  const int64_t warp = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / cuda::kLanes;
  const int64_t i = slice.begin + warp / slice.span, word = slice.first_word + warp % slice.span;
  if (i >= slice.end || word < i / kBits) return;
  if ((sorted.removed[i / kBits] >> (i % kBits)) & 1) return;
  const int lane = threadIdx.x % cuda::kLanes;
  const int64_t j = word * kBits + lane;
  const Word low = __ballot_sync(cuda::kAllLanes, suppresses(sorted, rule, i, j));
  const Word high = __ballot_sync(cuda::kAllLanes, suppresses(sorted, rule, i, j + cuda::kLanes));
  if (lane == 0) slice.row(i)[word] = high << cuda::kLanes | low;
}

// Which of 64 boxes are kept: bit k of own[i] says that i suppresses k.
__device__ Word greedy(Word candidates, const Word* own) {
  Word kept = 0;
  while (candidates != 0) {
    const int i = __ffsll(static_cast<long long>(candidates)) - 1;
    kept |= Word{1} << i;
    candidates &= ~(own[i] | Word{1} << i);
  }
  return kept;
}

// One block. Kept boxes of each word suppress those of the later words.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(Sorted sorted, Slice slice, int64_t* out) {
  BEVKD2_SHARED_MEMORY(memory);
  Word* const own = reinterpret_cast<Word*>(memory);  // kBits words, then the kept boxes
  int64_t count = sorted.counts[0];
  for (int64_t first = slice.begin; first < slice.end; first += kBits) {
    const int64_t word = first / kBits;
    const int size = slice.end - first < kBits ? static_cast<int>(slice.end - first) : kBits;
    const Word all = size == kBits ? ~Word{0} : (Word{1} << size) - 1;
    const Word candidates = all & ~sorted.removed[word];
    const int t = threadIdx.x;
    if (t < size && (candidates >> t) & 1) own[t] = slice.row(first + t)[word];
    __syncthreads();
    if (t == 0) own[kBits] = greedy(candidates, own);
    __syncthreads();
    const Word kept = own[kBits];
    if (t < size && (kept >> t) & 1)
      out[count + __popcll(kept & ((Word{1} << t) - 1))] = sorted.order[first + t];
    count += __popcll(kept);
    for (int64_t later = word + 1 + t; later < sorted.words; later += blockDim.x) {
      Word removed = sorted.removed[later];
      for (Word left = kept; left != 0; left &= left - 1)
        removed |= slice.row(first + __ffsll(static_cast<long long>(left)) - 1)[later];
      sorted.removed[later] = removed;
    }
    __syncthreads();  // the next word is read by all; own is written again
  }
  if (threadIdx.x == 0) sorted.counts[0] = count;
}

// Positions by falling score, the first of equals first.
Tensor by_score(const Tensor& scores) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(scores), torch::stable::detail::from(true),
                                    torch::stable::detail::from(int64_t{-1}),
                                    torch::stable::detail::from(true)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::argsort", "stable", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void keep_survivors(const Sorted& sorted, const Rule& rule, const Tensor& like, int64_t* out,
                    cudaStream_t stream) {
  const int64_t rows = std::min(sorted.n, kSlice);
  const Tensor words = torch::stable::new_empty(like, {rows * sorted.words}, ScalarType::Long);
  for (int64_t begin = 0; begin < sorted.n; begin += kSlice) {
    const int64_t end = std::min(begin + kSlice, sorted.n), first = begin / kBits;
    const Slice slice{begin, end, first, sorted.words - first, static_cast<Word*>(words.mutable_data_ptr())};
    const int64_t warps = (end - begin) * slice.span;
    cuda::launch(suppression_kernel, cuda::blocks_for(warps * cuda::kLanes, kThreads), kThreads, 0, stream,
                 sorted, slice, rule);
    cuda::launch(scan_kernel, 1, kScanThreads, (kBits + 1) * sizeof(Word), stream, sorted, slice, out);
  }
}

struct Cuda {
  static void overlaps(const Pairs& p, const Tensor& like) {
    if (p.overlap == Overlap::kArea) return launch_pairs<Overlap::kArea>(p, like);
    if (p.overlap == Overlap::kIou) return launch_pairs<Overlap::kIou>(p, like);
    launch_pairs<Overlap::kVolumeIou>(p, like);
  }

  static Tensor suppress(const Candidates& c, const Tensor& scores) {
    const cuda::OnDevice device(scores);
    const int64_t n = c.n, words = (n + kBits - 1) / kBits;
    Tensor kept = torch::stable::new_empty(scores, {n}, ScalarType::Long);
    if (n == 0) return kept;
    const Tensor order = by_score(scores);
    const Tensor sorted_boxes = torch::stable::new_empty(scores, {n, kDeviceBoxNumbers});
    const Tensor sorted_labels = torch::stable::new_empty(scores, {n}, ScalarType::Long);
    const Tensor zeros = torch::stable::new_zeros(scores, {words + 2}, ScalarType::Long);
    int64_t* const counts = static_cast<int64_t*>(zeros.mutable_data_ptr());
    const Sorted sorted{n,
                        words,
                        static_cast<const int64_t*>(order.const_data_ptr()),
                        static_cast<DeviceBox*>(sorted_boxes.mutable_data_ptr()),
                        static_cast<int64_t*>(sorted_labels.mutable_data_ptr()),
                        reinterpret_cast<Word*>(counts + 2),
                        counts};
    cuda::launch(sort_kernel, cuda::blocks_for(n, kThreads), kThreads, 0, device.stream, sorted, c.boxes,
                 c.scores, c.labels, c.rule.anywhere());
    keep_survivors(sorted, c.rule, scores, static_cast<int64_t*>(kept.mutable_data_ptr()), device.stream);
    int64_t host[2];
    BEVKD2_CUDA_CHECK(cudaMemcpyAsync(host, counts, sizeof(host), cudaMemcpyDeviceToHost, device.stream));
    BEVKD2_CUDA_CHECK(cudaStreamSynchronize(device.stream));
    STD_TORCH_CHECK(host[1] == 0, "rotated_nms: a score is NaN, or a box not finite or of negative size");
    return torch::stable::narrow(kept, 0, 0, host[0]);
  }
};

}  // namespace
}  // namespace bevkd2::box3d

BEVKD2_CUDA_LIBRARY(m) {
  using namespace bevkd2::box3d;
  Ops<Cuda>::register_all(m);
}
