// A thread that does what would keep the server's own from its sockets: tokenising a long prompt takes a while.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace tidal::server {

class Worker {
 public:
  /// `most`: tasks that may wait.
  explicit Worker(size_t most) : most_(most), thread_([this] { work(); }) {}
  /// Waits for the task in progress; the others are dropped.
  ~Worker();

  /// False when too many wait; the task is then not taken.
  bool post(std::function<void()> task);

 private:
  void work();

  size_t most_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace tidal::server
