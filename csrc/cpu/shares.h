// Work in shares of their own: thread t of T begins with its own tiles, the t-th part of them all,
// so that in every call the same thread reads the same weights; who is done early takes tiles of
// the others, so that a thread which the system delays holds up nobody.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>

namespace ardiff {

class Shares {
 public:
  Shares(int64_t tiles, int64_t threads)
      : tiles_(tiles), threads_(threads), next_(new Counter[threads]) {
    constexpr int64_t kChunksPerThread = 8;
    chunk_ = std::max<int64_t>(1, tiles / (threads * kChunksPerThread));
    for (int64_t t = 0; t < threads; ++t) next_[t].value = begin_of(t);
  }

  /// Calls work(first, last) for the tiles of thread `own`, then for what others have left.
  template <class Work>
  void run(int64_t own, Work work) {
    for (int64_t i = 0; i < threads_; ++i) {
      const int64_t whose = (own + i) % threads_, end = begin_of(whose + 1);
      for (;;) {
        const int64_t first = next_[whose].value.fetch_add(chunk_, std::memory_order_relaxed);
        if (first >= end) break;
        work(first, std::min(first + chunk_, end));
      }
    }
  }

 private:
  struct alignas(64) Counter {
    std::atomic<int64_t> value;
  };

  int64_t begin_of(int64_t thread) const { return tiles_ * thread / threads_; }

  int64_t tiles_, threads_, chunk_;
  std::unique_ptr<Counter[]> next_;
};

}  // namespace ardiff
