// The scheduler's thread: submitting, cancelling and looking from other threads.
#include "engine/scheduler_thread.h"

#include <atomic>
#include <future>
#include <thread>

#include "unit/scheduler_setup.h"

namespace tidal::test {
namespace {

const EngineOptions kOptions = {.context = 512, .tokens = 2048, .chunk = 64, .sequences = 4};

/// A job whose end can be waited for.
struct Awaited {
  Outcome outcome;
  std::promise<void> promise;
  std::future<void> ended = promise.get_future();

  Job job(const JobSetup& setup) {
    Job job = make_job(setup, outcome);
    job.finished = [this, finished = job.finished](JobEnd end, const JobReport& report) {
      finished(end, report);
      promise.set_value();
    };
    return job;
  }
};

TEST(SchedulerThread, ManyThreadsSubmitAndCancel) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), kOptions, 1);
  constexpr int kThreads = 4, kJobs = 5;
  std::vector<JobSetup> jobs;
  std::vector<std::vector<Token>> expected;
  for (int i = 0; i < kThreads * kJobs; ++i) {
    jobs.push_back(job_of_kind(i, random_tokens(5 + 7 * (i % 11), i), 5 + i % 13, i));
    expected.push_back(alone(setup.engine, jobs.back()).first);
  }
  std::vector<Awaited> awaited(jobs.size());
  {
    SchedulerThread scheduler(setup.engine, {});
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (int i = t * kJobs; i < (t + 1) * kJobs; ++i) {
          const auto id = scheduler.submit(awaited[i].job(jobs[i]));
          ASSERT_TRUE(id);
          if (i % 5 == 4) scheduler.cancel(*id);
          EXPECT_LE(scheduler.state().running, kOptions.sequences);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (Awaited& job : awaited) job.ended.wait();
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    const Outcome& outcome = awaited[i].outcome;
    if (i % 5 == 4) {
      ASSERT_LE(outcome.text.size(), expected[i].size());
      EXPECT_TRUE(std::equal(outcome.text.begin(), outcome.text.end(), expected[i].begin()));
    } else {
      EXPECT_EQ(outcome.end, JobEnd::Limit);
      EXPECT_EQ(outcome.text, expected[i]) << i;
    }
  }
  EXPECT_EQ(setup.engine.pool().free_blocks(), setup.engine.pool().blocks());
}

TEST(SchedulerThread, NothingWaitsForAStep) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), {.context = 512, .chunk = 64, .sequences = 1}, 1);
  SchedulerThread scheduler(setup.engine, {.queue = 1});
  std::promise<void> begun, go_on;
  Awaited first, second, third;
  Job job = first.job({.prompt = {1, 2, 3}, .most = -1});
  job.token = [&, count = 0](Token) mutable {
    if (++count == 2) {  // a step after that of the prompt, which a state knows
      begun.set_value();
      go_on.get_future().wait();
    }
    return true;
  };
  const auto id = scheduler.submit(std::move(job));
  ASSERT_TRUE(id);
  begun.get_future().wait();
  // The step hangs until this thread has done all that follows.
  EXPECT_EQ(scheduler.state().running, 1);
  EXPECT_EQ(scheduler.state().waiting, 0);
  EXPECT_TRUE(scheduler.submit(second.job({.prompt = {4, 5}, .most = 2})));
  EXPECT_EQ(scheduler.state().waiting, 1);
  EXPECT_FALSE(scheduler.submit(third.job({.prompt = {4, 5}})));
  EXPECT_NE(error_of([&] { scheduler.submit(third.job({.prompt = {}})); }), "no error");
  scheduler.cancel(*id);
  EXPECT_FALSE(first.outcome.end);
  go_on.set_value();
  first.ended.wait();
  EXPECT_EQ(first.outcome.end, JobEnd::Cancelled);
  second.ended.wait();
  EXPECT_EQ(second.outcome.text.size(), 2u);
  EXPECT_FALSE(third.outcome.end);
}

TEST(SchedulerThread, ItsEndCancelsWhatStillRuns) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), kOptions, 1);
  std::vector<Awaited> jobs(9);
  std::thread::id runner;
  {
    SchedulerThread scheduler(setup.engine, {});
    for (Awaited& awaited : jobs) {
      Job job = awaited.job({.prompt = random_tokens(40, 1), .most = 100000});
      job.finished = [&, finished = job.finished](JobEnd end, const JobReport& report) {
        runner = std::this_thread::get_id();
        finished(end, report);
      };
      ASSERT_TRUE(scheduler.submit(std::move(job)));
    }
  }
  for (const Awaited& job : jobs) EXPECT_EQ(job.outcome.end, JobEnd::Cancelled);
  EXPECT_NE(runner, std::this_thread::get_id());
  EXPECT_EQ(setup.engine.pool().free_blocks(), setup.engine.pool().blocks());
}

TEST(SchedulerThread, SleepsAndWakesAgain) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), kOptions, 1);
  SchedulerThread scheduler(setup.engine, {});
  for (int i = 0; i < 20; ++i) {
    Awaited awaited;
    ASSERT_TRUE(scheduler.submit(awaited.job({.prompt = {1, 2, 3}, .most = 2})));
    awaited.ended.wait();
    EXPECT_EQ(awaited.outcome.text.size(), 2u);
    if (i % 2) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace
}  // namespace tidal::test
