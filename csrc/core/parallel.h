// torch's parallel_for, as ThreadSanitizer understands it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#endif

namespace bevkd2 {

// Calls function(first, last) for parts of [begin, end), on torch's threads.
//
// torch and its OpenMP are built without ThreadSanitizer, which so cannot see that the parts begin after the
// call and end before it returns. The annotations say so, and nothing more: a race between two parts is
// found.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& function) {
#if defined(__SANITIZE_THREAD__)
  static char called,
      returned;  // not of the call: a thread would find them in the lambda, before it may read it
  const auto part = [&](int64_t first, int64_t last) {
    __tsan_acquire(&called);
    function(first, last);
    __tsan_release(&returned);
  };
  __tsan_release(&called);
  torch::stable::parallel_for(begin, end, grain, part);
  __tsan_acquire(&returned);
#else
  torch::stable::parallel_for(begin, end, grain, function);
#endif
}

}  // namespace bevkd2
