// Compiles an op's CPU kernels for every instruction set. No include guard: <op>_cpu.cpp includes it after
//
//   #define BEVKD2_CPU_KERNELS "../<family>/<op>_cpu_kernels.h"
//
// inside the op's namespace, which then has namespaces plain and, where there is AVX2, avx2 for BEVKD2_CALL.
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
#endif

#undef BEVKD2_CPU_KERNELS
