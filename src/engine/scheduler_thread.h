// A scheduler that a thread of its own runs.
#pragma once

#include <memory>
#include <optional>

#include "engine/scheduler.h"

namespace tidal {

/// All functions may be called by any thread, and none waits for a step to end. The thread sleeps while there are no
/// jobs.
class SchedulerThread {
 public:
  /// The engine must outlive it and is the thread's alone. Throws Error as Scheduler().
  SchedulerThread(Engine& engine, const SchedulerOptions& options);
  /// Cancels what still runs.
  ~SchedulerThread();

  /// nullopt when the queue is full. Throws Error for a job that can never run, as Scheduler::check().
  std::optional<JobId> submit(Job job);
  /// Noticed before the next step.
  void cancel(JobId id);
  /// As of the end of the last step; jobs submitted since then count as waiting.
  SchedulerState state() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidal
