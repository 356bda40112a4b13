// How the CPU divides a call into tasks. Results do not depend on it: each sum is made by one task, in an
// order that depends on the data alone.
#pragma once

#include <algorithm>
#include <cstdint>

namespace bevkd2::msda {

// The largest divisor of `heads` that is at most `limit`: tasks work on as many heads each.
inline int heads_of_task(int heads, int64_t limit) {
  int best = static_cast<int>(std::clamp<int64_t>(limit, 1, heads));
  while (heads % best != 0) --best;
  return best;
}

// Queries order[begin .. end), heads [first_head, first_head + the plan's heads). Only rows of `batch`,
// unless -1.
struct Task {
  int64_t begin, end;
  int first_head;
  int64_t batch;
};

struct Plan {
  const int64_t* order;  // of the queries (or outputs), by value batch where tasks are
  int64_t queries;
  int64_t span;     // of them in a task
  int64_t batches;  // 0, or each task is for one value batch alone
  int heads, groups;

  int64_t tasks() const { return (batches ? batches : (queries + span - 1) / span) * groups; }
  Task task(int64_t i) const {
    const int first_head = static_cast<int>(i % groups) * heads;
    const int64_t part = i / groups;
    if (batches) return {0, queries, first_head, part};
    return {part * span, std::min(queries, (part + 1) * span), first_head, -1};
  }
};

}  // namespace bevkd2::msda
