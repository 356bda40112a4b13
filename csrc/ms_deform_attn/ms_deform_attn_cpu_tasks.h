// Tasks that threads take one after another, so that one slow thread does not delay the others. The result of
// a task must not depend on the thread that runs it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../core/parallel.h"

namespace bevkd2 {

class Tasks {
 public:
  explicit Tasks(int64_t count) : count_(count) {}
  int64_t count() const { return count_; }

  // The next task, or -1 when none is left.
  int64_t take() {
    const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < count_ ? task : -1;
  }

 private:
  const int64_t count_;
  std::atomic<int64_t> next_{0};
};

// Calls worker(tasks) on up to `threads` threads; a worker takes tasks until none is left.
template <typename Worker>
void run_tasks(int64_t count, int64_t threads, const Worker& worker) {
  Tasks tasks(count);
  parallel_for(0, std::min(count, threads), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) worker(tasks);
  });
}

}  // namespace bevkd2
