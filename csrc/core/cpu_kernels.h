// Compiles an op's CPU kernels for every instruction set. No include guard: <op>_cpu.cpp includes it after
//
//   #define BEVKD2_CPU_KERNELS "../<family>/<op>_cpu_kernels.h"
//
// inside the op's namespace, which then has namespaces plain and, where there is AVX2, avx2 for BEVKD2_CALL;
// after #define BEVKD2_CPU_KERNELS_AVX512 also avx512, for BEVKD2_CALL_AVX512.
namespace plain {
using bevkd2::plain::Vec;
#include BEVKD2_CPU_KERNELS
}  // namespace plain

#if BEVKD2_HAS_AVX2
BEVKD2_BEGIN_AVX2
namespace avx2 {
using bevkd2::avx2::Vec;
#include BEVKD2_CPU_KERNELS
}  // namespace avx2
BEVKD2_END_AVX2

#if defined(BEVKD2_CPU_KERNELS_AVX512)
BEVKD2_BEGIN_AVX512
namespace avx512 {
using bevkd2::avx512::Vec;
#include BEVKD2_CPU_KERNELS
}  // namespace avx512
BEVKD2_END_AVX512
#endif
#endif

#undef BEVKD2_CPU_KERNELS
#undef BEVKD2_CPU_KERNELS_AVX512
