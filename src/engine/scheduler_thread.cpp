#include "engine/scheduler_thread.h"

#include <condition_variable>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace tidal {
namespace {

/// For the scheduler within: it must take whatever was accepted.
SchedulerOptions without_limit(SchedulerOptions options) {
  if (options.queue >= 0) options.queue = std::numeric_limits<int>::max();
  return options;
}

}  // namespace

struct SchedulerThread::Impl {
  Impl(Engine& engine, const SchedulerOptions& options)
      : engine(engine),
        options(options),
        scheduler(std::make_unique<Scheduler>(engine, without_limit(options))),
        snapshot(scheduler->state()),
        thread([this] { run(); }) {}

  void run();
  SchedulerState state_now() const;

  Engine& engine;
  const SchedulerOptions options;
  std::unique_ptr<Scheduler> scheduler;  // the thread's alone

  std::mutex mutex;  // of all that follows but the thread; held for moments only
  std::condition_variable wake;
  SchedulerState snapshot;
  std::vector<std::pair<JobId, Job>> submitted;
  std::vector<JobId> cancelled;
  JobId last_id = 0;
  bool stopping = false;

  std::thread thread;  // begins when all else is there
};

void SchedulerThread::Impl::run() {
  std::vector<std::pair<JobId, Job>> jobs;
  std::vector<JobId> cancels;
  for (bool going = true; going;) {
    {
      std::unique_lock lock(mutex);
      wake.wait(lock, [&] { return stopping || !submitted.empty() || !cancelled.empty() || !scheduler->idle(); });
      going = !stopping;
      std::swap(jobs, submitted);
      std::swap(cancels, cancelled);
      snapshot.waiting += static_cast<int>(jobs.size());
    }
    for (auto& [id, job] : jobs) scheduler->submit(id, job);
    jobs.clear();
    for (const JobId id : cancels) scheduler->cancel(id);
    cancels.clear();
    if (going) scheduler->step();
    const SchedulerState now = scheduler->state();
    const std::lock_guard lock(mutex);
    snapshot = now;
  }
  scheduler.reset();  // here, where all callbacks are called
}

SchedulerState SchedulerThread::Impl::state_now() const {
  SchedulerState state = snapshot;
  state.waiting += static_cast<int>(submitted.size());
  return state;
}

SchedulerThread::SchedulerThread(Engine& engine, const SchedulerOptions& options)
    : impl_(std::make_unique<Impl>(engine, options)) {}

SchedulerThread::~SchedulerThread() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->wake.notify_one();
  impl_->thread.join();
}

std::optional<JobId> SchedulerThread::submit(Job job) {
  Scheduler::check(impl_->engine, job);
  JobId id = 0;
  {
    const std::lock_guard lock(impl_->mutex);
    if (!Scheduler::has_place(impl_->engine, impl_->options, impl_->state_now())) return std::nullopt;
    id = ++impl_->last_id;
    impl_->submitted.emplace_back(id, std::move(job));
  }
  impl_->wake.notify_one();
  return id;
}

void SchedulerThread::cancel(JobId id) {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->cancelled.push_back(id);
  }
  impl_->wake.notify_one();
}

SchedulerState SchedulerThread::state() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->state_now();
}

}  // namespace tidal
