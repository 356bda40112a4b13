#include "kernels.h"

#include "../core/cpu_dispatch.h"

namespace bevkd2::box3d {
namespace {

namespace plain {
#include "lanes_plain.h"
//
#include "cpu_kernels.h"
}  // namespace plain

#if BEVKD2_HAS_AVX2
// Without FMA, unlike BEVKD2_BEGIN_AVX2: bits do not depend on the machine, and the difference of equal
// products is exactly zero (rotated_overlap.h).
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
namespace avx2 {
#include "lanes_avx2.h"
//
#include "../core/rotated_overlap.h"
//
#include "cpu_kernels.h"
}  // namespace avx2
BEVKD2_END_AVX2
#endif

}  // namespace

const Kernels& kernels() {
#if BEVKD2_HAS_AVX2
  if (use_avx2()) return avx2::kKernels;
#endif
  return plain::kKernels;
}

}  // namespace bevkd2::box3d
