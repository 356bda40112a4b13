// Instruction sets of CPU kernels, chosen when the program runs: plain C++, AVX2 and, for the ops that have
// such kernels, AVX-512 (never -march=native). BEVKD2_CPU_CAPABILITY=default, avx2 or avx512 in the
// environment is the highest that is used, and a processor without it uses the best that it has.
//
// An op writes its kernels once, as templates over Vec (Vec<A>::size numbers; vec_plain.h says what they do),
// in <op>_cpu_kernels.h. That header has no guard and includes nothing but other headers of this kind;
// <op>_cpu.cpp compiles it for each instruction set:
//
//   #include "../core/cpu_dispatch.h"
//   namespace bevkd2::family::op {
//   namespace {
//   #define BEVKD2_CPU_KERNELS "../family/op_cpu_kernels.h"
//   #include "../core/cpu_kernels.h"
//
// and calls BEVKD2_CALL(A, kernel, arguments...), which returns kernel<A>(arguments...) of the instruction
// set in use. float, Half and BFloat16 compute in Vec<float>; double has only the plain Vec. For AVX-512 too,
// it defines BEVKD2_CPU_KERNELS_AVX512 before the include, and calls BEVKD2_CALL_AVX512.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "dispatch.h"
#include "vec_plain.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define BEVKD2_HAS_AVX2 1
#else
#define BEVKD2_HAS_AVX2 0
#endif

// A region, not an attribute: target attributes do not apply to lambdas. It must hold only code of this
// project: the linker could otherwise use the AVX2 copy of a library's inline function for every caller.
//
// BEVKD2_BEGIN_AVX2_WITHOUT_FMA is for kernels whose results must be bitwise equal to those of plain C++.
#if BEVKD2_HAS_AVX2
#if defined(__clang__)
#define BEVKD2_BEGIN_AVX2 \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c\"))), apply_to = function)")
#define BEVKD2_BEGIN_AVX2_WITHOUT_FMA \
  _Pragma("clang attribute push(__attribute__((target(\"avx2\"))), apply_to = function)")
#define BEVKD2_END_AVX2 _Pragma("clang attribute pop")
#define BEVKD2_BEGIN_AVX512                                                                             \
  _Pragma(                                                                                              \
      "clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,fma,f16c\"))), " \
      "apply_to = function)")
#define BEVKD2_END_AVX512 _Pragma("clang attribute pop")
#else
#define BEVKD2_BEGIN_AVX512 \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,fma,f16c\")")
#define BEVKD2_END_AVX512 _Pragma("GCC pop_options")
#define BEVKD2_BEGIN_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c\")")
#define BEVKD2_BEGIN_AVX2_WITHOUT_FMA _Pragma("GCC push_options") _Pragma("GCC target(\"avx2\")")
#define BEVKD2_END_AVX2 _Pragma("GCC pop_options")
#endif
// gcc 12 warns of the undefined registers in its own header.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include "vec_avx2.h"
#include "vec_avx512.h"
#endif

namespace bevkd2 {

enum class Capability { plain, avx2, avx512 };

inline Capability capability_of_processor() {
#if BEVKD2_HAS_AVX2
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
    return Capability::plain;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
             ? Capability::avx512
             : Capability::avx2;
#else
  return Capability::plain;
#endif
}

// The highest that BEVKD2_CPU_CAPABILITY allows; bevkd2/ops/library.py refuses other values.
inline Capability capability_allowed() {
  const char* name = std::getenv("BEVKD2_CPU_CAPABILITY");
  if (name && std::strcmp(name, "default") == 0) return Capability::plain;
  return name && std::strcmp(name, "avx2") == 0 ? Capability::avx2 : Capability::avx512;
}

inline Capability capability() {
  static const Capability used = std::min(capability_of_processor(), capability_allowed());
  return used;
}

inline bool use_avx2() { return capability() >= Capability::avx2; }
inline bool use_avx512() { return capability() == Capability::avx512; }

}  // namespace bevkd2

// BEVKD2_CALL_UNTYPED is for kernels that are no templates and exist for AVX2 and plain C++ alike.
#if BEVKD2_HAS_AVX2
#define BEVKD2_CALL(A, kernel, ...)                                \
  do {                                                             \
    if constexpr (!std::is_same_v<A, double>) {                    \
      if (bevkd2::use_avx2()) return avx2::kernel<A>(__VA_ARGS__); \
    }                                                              \
    return plain::kernel<A>(__VA_ARGS__);                          \
  } while (0)
#define BEVKD2_CALL_AVX512(A, kernel, ...)                             \
  do {                                                                 \
    if constexpr (!std::is_same_v<A, double>) {                        \
      if (bevkd2::use_avx512()) return avx512::kernel<A>(__VA_ARGS__); \
    }                                                                  \
    BEVKD2_CALL(A, kernel, __VA_ARGS__);                               \
  } while (0)
#define BEVKD2_CALL_UNTYPED(kernel, ...)                      \
  do {                                                        \
    if (bevkd2::use_avx2()) return avx2::kernel(__VA_ARGS__); \
    return plain::kernel(__VA_ARGS__);                        \
  } while (0)
#else
#define BEVKD2_CALL(A, kernel, ...) return plain::kernel<A>(__VA_ARGS__)
#define BEVKD2_CALL_AVX512(A, kernel, ...) return plain::kernel<A>(__VA_ARGS__)
#define BEVKD2_CALL_UNTYPED(kernel, ...) return plain::kernel(__VA_ARGS__)
#endif
