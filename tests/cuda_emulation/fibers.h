// A block of CUDA threads as fibers of one CPU thread, and the points where they meet. See README.md.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace bevkd2_emulation {

constexpr int kLanes = 32;
constexpr size_t kStack = 128 * 1024;
constexpr size_t kGuard = 256;  // bytes behind the dynamic shared memory
constexpr unsigned char kGuardByte = 0xA5;

// Where a thread waits: a line of a kernel, and what it gave to the others.
struct Wait {
  enum Kind { kNothing, kBlock, kShuffle, kVote } kind = kNothing;
  const char* file = "";
  int line = 0;
  unsigned mask = 0;   // the lanes that have to come
  uint64_t given = 0;  // the value of a shuffle; the predicate of a vote or of a block's barrier
  int source = 0;      // the lane that a shuffle reads
  uint64_t result = 0;
};

struct Fiber {
  jmp_buf at;
  std::unique_ptr<char[]> stack{new char[kStack]};
  uint3 index;
  Wait wait;
  bool started = false, done = false, ready = false;
};

class Block {
 public:
  // Runs function() once for each thread. Throws what a thread throws, and where threads wait for ever.
  template <typename F>
  void run(dim3 size, size_t shared_bytes, const F& function, std::mt19937* shuffle) {
    const size_t count = size_t{size.x} * size.y * size.z;
    while (fibers_.size() < count) fibers_.push_back(std::make_unique<Fiber>());
    live_ = count_ = count;
    waiting_ = 0;
    shared_.assign(shared_bytes + kGuard + 16, 0xFF);  // 0xFF is NaN in every float type
    std::memset(shared() + shared_bytes, kGuardByte, kGuard);
    call_ = [](const void* f) { (*static_cast<const F*>(f))(); };
    function_ = &function;
    error_ = nullptr;
    for (size_t t = 0; t < count; ++t) {
      const auto x = static_cast<unsigned>(t % size.x), y = static_cast<unsigned>(t / size.x % size.y);
      reset(*fibers_[t], {x, y, static_cast<unsigned>(t / size.x / size.y)});
    }
    loop(shuffle);
    for (size_t i = 0; i < kGuard; ++i)
      if (shared()[shared_bytes + i] != kGuardByte) throw error("a thread wrote behind the shared memory");
  }

  unsigned char* shared() {
    return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(shared_.data()) + 15) / 16 * 16);
  }

  // The calling thread waits for the others; what the meeting gave it.
  uint64_t meet(Wait wait) {
    current_->wait = wait;
    current_->ready = false;
    if (wait.kind == Wait::kBlock) {
      ++waiting_;
      complete_block();
    } else {
      complete_warp();
    }
    if (!current_->ready && _setjmp(current_->at) == 0) _longjmp(scheduler_, 1);
    return current_->wait.result;
  }

  static std::runtime_error error(const std::string& what) {
    const auto text = [](auto i) {
      return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
    };
    return std::runtime_error("CUDA emulation, block " + text(blockIdx) + ", thread " + text(threadIdx) +
                              ": " + what);
  }

 private:
  static void reset(Fiber& fiber, uint3 index) {
    fiber.index = index;
    fiber.wait = {};
    fiber.started = fiber.done = false;
    fiber.ready = true;
  }

  void loop(std::mt19937* shuffle) {
    std::vector<size_t> order(count_);
    for (size_t t = 0; t < count_; ++t) order[t] = t;
    while (live_ > 0) {
      if (shuffle) std::shuffle(order.begin(), order.end(), *shuffle);
      bool moved = false;
      for (const size_t t : order) {
        if (fibers_[t]->done || !fibers_[t]->ready) continue;
        moved = true;
        index_ = t;
        current_ = fibers_[t].get();
        threadIdx = current_->index;
        if (_setjmp(scheduler_) == 0) resume();
        if (error_) std::rethrow_exception(error_);
      }
      if (!moved) throw deadlock();
    }
  }

  void resume() {
    if (current_->started) _longjmp(current_->at, 1);
    current_->started = true;
    static thread_local ucontext_t fresh;
    getcontext(&fresh);
    fresh.uc_stack = {current_->stack.get(), 0, kStack};
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&fresh, reinterpret_cast<void (*)()>(&Block::entry), 2, static_cast<unsigned>(self),
                static_cast<unsigned>(uint64_t{self} >> 32));
    setcontext(&fresh);
  }

  static void entry(unsigned low, unsigned high) {
    auto* self = reinterpret_cast<Block*>(static_cast<uintptr_t>(uint64_t{high} << 32 | low));
    try {
      self->call_(self->function_);
      self->current_->done = true;
      --self->live_;
      self->complete_block();  // those that wait do not wait for a thread that has ended
    } catch (...) {
      self->error_ = std::current_exception();
    }
    _longjmp(self->scheduler_, 1);
  }

  // Lets the block go on once every thread that has not ended waits at a barrier.
  void complete_block() {
    if (live_ == 0 || waiting_ < live_) return;
    const Fiber* first = nullptr;
    uint64_t sum = 0;
    for (size_t t = 0; t < count_; ++t) {
      const Fiber& f = *fibers_[t];
      if (f.done) continue;
      if (!first) first = &f;
      if (f.wait.line != first->wait.line || std::strcmp(f.wait.file, first->wait.file) != 0)
        throw error("threads of a block wait at different __syncthreads: " + place(f.wait) + " and " +
                    place(first->wait));
      sum += f.wait.given;
    }
    waiting_ = 0;
    for (size_t t = 0; t < count_; ++t) {
      fibers_[t]->wait.result = sum;
      fibers_[t]->ready = true;
    }
  }

  // Lets the lanes of the caller's mask go on once all of them wait at the caller's line.
  void complete_warp() {
    const size_t warp = index_ / kLanes * kLanes;
    const Wait& mine = current_->wait;
    if (!(mine.mask >> index_ % kLanes & 1))
      throw error("the mask at " + place(mine) + " leaves its caller out");
    uint64_t ballot = 0;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      if (!(mine.mask >> lane & 1)) continue;
      if (warp + lane >= count_ || fibers_[warp + lane]->done)
        throw error("the mask at " + place(mine) + " names lane " + std::to_string(lane) +
                    ", which has ended");
      const Fiber& f = *fibers_[warp + lane];
      if (f.ready || f.wait.kind != mine.kind || f.wait.line != mine.line || f.wait.mask != mine.mask) return;
      if (f.wait.given) ballot |= uint64_t{1} << lane;
    }
    for (size_t lane = 0; lane < kLanes; ++lane) {
      if (!(mine.mask >> lane & 1)) continue;
      Fiber& f = *fibers_[warp + lane];
      if (f.wait.kind == Wait::kShuffle && !(mine.mask >> f.wait.source & 1))
        throw error("the shuffle at " + place(mine) + " reads lane " + std::to_string(f.wait.source) +
                    ", which its mask leaves out");
      f.wait.result = f.wait.kind == Wait::kVote ? ballot : fibers_[warp + f.wait.source]->wait.given;
    }
    for (size_t lane = 0; lane < kLanes; ++lane)
      if (mine.mask >> lane & 1) fibers_[warp + lane]->ready = true;
  }

  std::runtime_error deadlock() const {
    std::string what = "threads wait for ever:";
    int shown = 0;
    for (size_t t = 0; t < count_ && shown < 4; ++t)
      if (!fibers_[t]->done) {
        what += " thread " + std::to_string(t) + " at " + place(fibers_[t]->wait) + ";";
        ++shown;
      }
    return error(what + " " + std::to_string(count_ - live_) + " of " + std::to_string(count_) +
                 " threads have ended");
  }

  static std::string place(const Wait& w) {
    const char* kinds[] = {"", "__syncthreads", "a shuffle", "a vote or __syncwarp"};
    return std::string(kinds[w.kind]) + " (" + w.file + ":" + std::to_string(w.line) + ")";
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<unsigned char> shared_;
  Fiber* current_ = nullptr;
  size_t count_ = 0, live_ = 0, waiting_ = 0, index_ = 0;
  jmp_buf scheduler_;
  void (*call_)(const void*) = nullptr;
  const void* function_ = nullptr;
  std::exception_ptr error_;
};

inline Block& block() {
  static Block one;
  return one;
}

inline unsigned char* shared_memory() { return block().shared(); }

[[noreturn]] inline void fail(const char* message) { throw Block::error(message); }

// Block after block. BEVKD2_EMULATION_SEED=n runs blocks, and the threads between barriers, in a random
// order.
template <typename F>
void launch(dim3 grid, dim3 size, size_t shared_bytes, const F& function) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (size_t{size.x} * size.y * size.z > 1024 || size.x == 0 || size.y == 0 || size.z == 0)
    throw std::runtime_error("CUDA emulation: a block has 1 to 1024 threads");
  if (grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("CUDA emulation: gridDim.y or .z over 65535");
  gridDim = grid;
  blockDim = size;
  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
  for (uint64_t b = 0; b < order.size(); ++b) order[b] = b;
  const char* seed = std::getenv("BEVKD2_EMULATION_SEED");
  std::mt19937 random(seed ? std::atoi(seed) : 0);
  if (seed) std::shuffle(order.begin(), order.end(), random);
  for (const uint64_t b : order) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    block().run(size, shared_bytes, function, seed ? &random : nullptr);
  }
}

template <typename T>
uint64_t to_bits(T v) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T v;
  std::memcpy(&v, &bits, sizeof(T));
  return v;
}

}  // namespace bevkd2_emulation
