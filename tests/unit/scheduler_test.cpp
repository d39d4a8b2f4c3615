// The scheduler: each job gets the text that it gets alone, and nobody waits longer than promised.
#include "engine/scheduler.h"

#include <deque>

#include "unit/scheduler_setup.h"

namespace tidal::test {
namespace {

class SchedulerTest : public BackendTest<std::string> {
 protected:
  /// On the CPU chunks and decode steps round otherwise with these weights; the reference is slow.
  ggml_type type() const { return GetParam() == "reference" ? GGML_TYPE_F32 : GGML_TYPE_Q8_0; }
};

INSTANTIATE_TEST_SUITE_P(All, SchedulerTest, testing::ValuesIn(kBackends), [](const auto& info) { return info.param; });

TEST_P(SchedulerTest, CompanyChangesNoText) {
  SmallEngine setup(GetParam(), type(), small_plan(), roomy());
  Random random(1);
  std::vector<JobSetup> jobs;
  std::vector<std::pair<std::vector<Token>, JobEnd>> expected;
  for (int i = 0; i < 14; ++i) {
    const int length = i % 3 ? random.integer(1, 70) : random.integer(60, 200);
    jobs.push_back(job_of_kind(i, random_tokens(length, 100 + i), random.integer(0, 16), i));
    if (i % 4 == 0) jobs.back().end = random.integer(0, 96);
    expected.push_back(alone(setup.engine, jobs.back()));
  }
  for (const bool greedy : {false, true}) {
    if (greedy && GetParam() == "reference") continue;  // it is slow
    // With no chooser that wants all logits, only likely tokens leave the backend.
    Scheduler scheduler(setup.engine, {});
    std::deque<Outcome> outcomes(jobs.size());
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (greedy && jobs[i].likely == 0) continue;
      submit(scheduler, i, jobs[i], outcomes[i]);
      for (int steps = random.integer(0, 3); steps > 0; --steps) scheduler.step();
    }
    run(scheduler);
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (greedy && jobs[i].likely == 0) continue;
      EXPECT_EQ(outcomes[i].text, expected[i].first) << "job " << i;
      EXPECT_EQ(outcomes[i].end, expected[i].second) << "job " << i;
      EXPECT_EQ(outcomes[i].report.error, "");
      EXPECT_EQ(outcomes[i].report.cached_tokens, 0);
    }
    EXPECT_EQ(scheduler.state().preemptions, 0);
    expect_all_blocks_back(scheduler, setup.engine);
  }
}

TEST_P(SchedulerTest, PreemptionLosesAndDoublesNothing) {
  // 4 blocks and one for every further sequence: four jobs of up to three blocks do not fit.
  SmallEngine setup(GetParam(), type(), small_plan(), {.context = 256, .chunk = 32, .sequences = 4});
  std::vector<JobSetup> jobs;
  std::vector<std::vector<Token>> expected;
  for (int i = 0; i < 6; ++i) {
    jobs.push_back(job_of_kind(i, random_tokens(20 + 5 * i, 200 + i), 110 + i, i));
    expected.push_back(alone(setup.engine, jobs.back()).first);
  }
  for (const bool use_cache : {false, true}) {
    if (!use_cache && GetParam() == "reference") continue;  // it is slow
    Scheduler scheduler(setup.engine, {});
    std::deque<Outcome> outcomes(jobs.size());
    for (size_t i = 0; i < jobs.size(); ++i) {
      jobs[i].use_cache = use_cache;
      submit(scheduler, i, jobs[i], outcomes[i]);
    }
    run(scheduler);
    EXPECT_GE(scheduler.state().preemptions, 2);
    int64_t decoded = 0;
    for (size_t i = 0; i < jobs.size(); ++i) {
      EXPECT_EQ(outcomes[i].text.size(), expected[i].size()) << "job " << i;
      // A plan that corrects may come to do so at other tokens.
      if (jobs[i].plan.correct == 0) {
        EXPECT_EQ(outcomes[i].text, expected[i]) << "job " << i;
      }
      EXPECT_EQ(outcomes[i].end, JobEnd::Limit);
      EXPECT_EQ(outcomes[i].report.decoded_tokens, jobs[i].most - 1);
      decoded += outcomes[i].report.decoded_tokens;
    }
    EXPECT_EQ(scheduler.state().decoded_tokens, decoded);
    expect_all_blocks_back(scheduler, setup.engine);
  }
}

TEST(Scheduler, TheYoungestGivesWay) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), {.context = 512, .chunk = 64, .sequences = 2});
  Scheduler scheduler(setup.engine, {});
  Outcome old, young;
  submit(scheduler, 1, {.prompt = random_tokens(250, 1), .most = 100}, old);
  submit(scheduler, 2, {.prompt = random_tokens(250, 2), .most = 100}, young);
  while (!old.end) scheduler.step();
  EXPECT_EQ(scheduler.state().preemptions, 1);
  EXPECT_LT(young.text.size(), 80u);
  run(scheduler);
  EXPECT_EQ(scheduler.state().preemptions, 1);
  EXPECT_GT(young.report.queue_seconds, 0);
  EXPECT_EQ(young.text.size(), 100u);
}

TEST_P(SchedulerTest, JobsShareWhatTheyBeginWith) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), roomy());
  Scheduler scheduler(setup.engine, {});
  const std::vector<Token> system = random_tokens(140, 1);
  const auto prompt = [&](int length, uint64_t stream) {
    std::vector<Token> tokens = system;
    const auto more = random_tokens(length, stream);
    tokens.insert(tokens.end(), more.begin(), more.end());
    return tokens;
  };
  Outcome first, second, third;
  const JobSetup one{.prompt = prompt(60, 2), .most = 12, .use_cache = true};
  JobSetup two = one, three = one;
  two.prompt = prompt(30, 3);
  three.use_cache = false;
  submit(scheduler, 1, one, first);
  while (first.text.empty()) scheduler.step();
  const int before = scheduler.state().free_blocks;
  submit(scheduler, 2, two, second);
  while (second.text.empty()) scheduler.step();
  ASSERT_FALSE(first.end) << "the first one still runs";
  // 170 tokens are 3 blocks, of which 2 are the first one's, and the third begins like its own.
  EXPECT_EQ(before - scheduler.state().free_blocks, 1);
  submit(scheduler, 3, three, third);
  run(scheduler);
  EXPECT_EQ(first.report.cached_tokens, 0);
  EXPECT_GE(second.report.cached_tokens, 140);
  EXPECT_LE(second.report.cached_tokens, 142);  // tokens behind the system prompt may agree by chance
  EXPECT_EQ(third.report.cached_tokens, 0);
  EXPECT_EQ(scheduler.state().cached_tokens, second.report.cached_tokens);
  EXPECT_EQ(scheduler.state().prompt_tokens, 200 + 170 + 200);
  EXPECT_EQ(third.text, first.text);
  // The reference computes the same in every chunk.
  if (GetParam() == "reference") {
    EXPECT_EQ(second.text, alone(setup.engine, two).first);
  }
  expect_all_blocks_back(scheduler, setup.engine);
}

TEST_P(SchedulerTest, FullAttentionTakesCleanContentOnly) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), roomy());
  JobSetup sparse{.prompt = random_tokens(90, 1), .most = 40, .plan = small_plan(), .use_cache = true};
  // All that a text before has left in the cache, and 10 tokens.
  const auto cached = [&](const JobSetup& kind) {
    Scheduler scheduler(setup.engine, {});
    Outcome before, outcome;
    submit(scheduler, 1, sparse, before);
    run(scheduler);
    JobSetup job = kind;
    job.prompt = sparse.prompt;
    job.prompt.insert(job.prompt.end(), before.text.begin(), before.text.end());
    job.prompt.resize(job.prompt.size() + 10, 5);
    job.use_cache = true;
    submit(scheduler, 2, job, outcome);
    run(scheduler);
    if (GetParam() == "reference" && (job.exact > 0 || !job.plan.has_sparse())) {
      EXPECT_EQ(outcome.text, alone(setup.engine, job).first);
    }
    return outcome.report.cached_tokens;
  };
  EXPECT_EQ(cached(job_of_kind(1, {}, 10, 1)), 129);  // the last token of a text is not in the cache
  EXPECT_EQ(cached(job_of_kind(0, {}, 10, 1)), 90);
  EXPECT_EQ(cached(job_of_kind(3, {}, 10, 1)), 90);
  EXPECT_EQ(cached(job_of_kind(4, {}, 10, 1)), 90);
}

TEST_P(SchedulerTest, TheLastTokenOfAPromptIsComputed) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), roomy());
  // And as many before it as take the way of prefill.
  const int few = setup.engine.pool().backend().decode_rows();
  for (const int length : {128, 100}) {
    const int computed = few < length ? few + 1 : 1;
    Scheduler scheduler(setup.engine, {});
    Outcome first, again;
    const JobSetup job{.prompt = random_tokens(length, 1), .most = 5, .likely = 1, .use_cache = true};
    submit(scheduler, 1, job, first);
    run(scheduler);
    submit(scheduler, 2, job, again);
    run(scheduler);
    EXPECT_EQ(again.report.cached_tokens, length - computed);
    EXPECT_EQ(again.prefilled, std::vector<int>{length});
    if (GetParam() == "reference") {
      EXPECT_EQ(again.text, first.text);
    }
  }
}

TEST(Scheduler, CancelledJobsGiveTheirBlocksBack) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), roomy(2));
  Scheduler scheduler(setup.engine, {});
  Outcome decoding, prefilling, waiting, exact;
  submit(scheduler, 1, {.prompt = random_tokens(20, 1), .most = -1}, decoding);
  submit(scheduler, 2, {.prompt = random_tokens(300, 2), .most = -1, .use_cache = true}, prefilling);
  submit(scheduler, 3, {.prompt = random_tokens(20, 3)}, waiting);
  for (int i = 0; i < 3; ++i) scheduler.step();
  ASSERT_GE(decoding.text.size(), 1u);
  ASSERT_TRUE(prefilling.text.empty() && !prefilling.prefilled.empty());
  ASSERT_TRUE(waiting.prefilled.empty());
  for (const JobId id : {3, 2, 1, 77}) scheduler.cancel(id);
  for (const Outcome* outcome : {&decoding, &prefilling, &waiting}) EXPECT_EQ(outcome->end, JobEnd::Cancelled);
  EXPECT_TRUE(scheduler.idle());
  scheduler.step();
  // What was computed is kept, in mid-prefill, too.
  Outcome again;
  submit(scheduler, 4, {.prompt = random_tokens(300, 2), .most = 1, .use_cache = true}, again);
  run(scheduler);
  EXPECT_EQ(again.report.cached_tokens, prefilling.prefilled.back());
  submit(scheduler, 5, job_of_kind(3, random_tokens(60, 4), -1, 3), exact);
  while (exact.text.size() < 4) scheduler.step();
  scheduler.cancel(5);
  EXPECT_EQ(exact.end, JobEnd::Cancelled);
  expect_all_blocks_back(scheduler, setup.engine);
}

TEST(Scheduler, ItsEndCancelsWhatStillRuns) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), roomy(1));
  Outcome running, waiting;
  {
    Scheduler scheduler(setup.engine, {});
    submit(scheduler, 1, {.prompt = random_tokens(20, 1), .most = -1}, running);
    submit(scheduler, 2, {.prompt = random_tokens(20, 2), .most = -1}, waiting);
    scheduler.step();
  }
  EXPECT_EQ(running.end, JobEnd::Cancelled);
  EXPECT_EQ(waiting.end, JobEnd::Cancelled);
  EXPECT_EQ(setup.engine.pool().free_blocks(), setup.engine.pool().blocks());
}

TEST(Scheduler, AFullQueueTakesNoMore) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), roomy(1));
  Scheduler scheduler(setup.engine, {.queue = 2});
  std::deque<Outcome> outcomes(5);
  for (int i = 0; i < 3; ++i) submit(scheduler, i, {.prompt = {1, 2, 3}, .most = 3}, outcomes[i]);
  Job job = make_job({.prompt = {4, 5}, .most = 3}, outcomes[3]);
  EXPECT_FALSE(scheduler.submit(3, job));
  EXPECT_EQ(job.prompt, (std::vector<Token>{4, 5}));
  scheduler.step();  // one runs, two wait
  EXPECT_FALSE(scheduler.submit(3, job));
  while (!outcomes[0].end) scheduler.step();
  EXPECT_TRUE(scheduler.submit(3, job));
  run(scheduler);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(outcomes[i].end, JobEnd::Limit);
  EXPECT_EQ(scheduler.state().jobs, 4);
}

TEST(Scheduler, NobodyWaitsForALongPrompt) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), roomy());
  Scheduler scheduler(setup.engine, {});
  Outcome running, exact, large, small;
  submit(scheduler, 1, {.prompt = random_tokens(20, 1), .most = -1}, running);
  submit(scheduler, 2, job_of_kind(3, random_tokens(40, 2), 400, 1), exact);
  while (running.text.empty() || exact.text.empty()) scheduler.step();
  submit(scheduler, 3, {.prompt = random_tokens(500, 3), .most = 2}, large);
  submit(scheduler, 4, {.prompt = random_tokens(30, 4), .most = 2}, small);
  int steps = 0;
  while (large.text.empty()) {
    const size_t before = running.text.size(), exact_before = exact.text.size(), chunks = large.prefilled.size();
    scheduler.step();
    EXPECT_EQ(running.text.size(), before + 1);
    EXPECT_GT(exact.text.size(), exact_before);
    EXPECT_LE(large.prefilled.size(), chunks + 1);
    if (++steps == 2) {
      EXPECT_EQ(small.text.size(), 1u) << "one chunk of the long prompt, then the short one";
    }
  }
  EXPECT_EQ(steps, 9);  // 8 chunks of 64, and the short prompt between them
  scheduler.cancel(1);
  run(scheduler);
}

TEST(Scheduler, ShortPromptsShareAChunk) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), roomy());
  std::deque<Outcome> outcomes(4);
  Scheduler scheduler(setup.engine, {});
  for (int i = 0; i < 4; ++i) submit(scheduler, i, {.prompt = random_tokens(20, i), .most = 9}, outcomes[i]);
  scheduler.step();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(outcomes[i].text.size(), i < 3 ? 1u : 0u) << i;
  scheduler.step();
  EXPECT_EQ(outcomes[3].text.size(), 1u);
  EXPECT_EQ(outcomes[0].text.size(), 2u);
}

TEST_P(SchedulerTest, PrefillHasItsShareBesideRunningJobs) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), roomy());
  Scheduler scheduler(setup.engine, {.prefill_share = 24});
  Outcome running, late;
  submit(scheduler, 1, {.prompt = random_tokens(100, 1), .most = 8}, running);
  while (running.text.empty()) scheduler.step();
  EXPECT_EQ(running.prefilled, (std::vector<int>{64, 100})) << "nobody decodes: whole chunks";
  const JobSetup job{.prompt = random_tokens(200, 2), .most = 9};
  submit(scheduler, 2, job, late);
  run(scheduler);
  ASSERT_GE(late.prefilled.size(), 5u);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(late.prefilled[i], 24 * static_cast<int>(i + 1));
  if (GetParam() == "reference") {
    EXPECT_EQ(late.text, alone(setup.engine, job).first);
  }
}

TEST(Scheduler, ReportsWhatJobsCost) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), roomy(2));
  Scheduler scheduler(setup.engine, {});
  Outcome one, two;
  const JobSetup job{.prompt = random_tokens(30, 1), .most = 2};
  submit(scheduler, 1, job, one);
  run(scheduler);
  EXPECT_EQ(one.report.prompt_tokens, 30);
  EXPECT_EQ(one.report.decoded_tokens, 1);
  EXPECT_EQ(one.report.decode_bytes, setup.engine.decode_bytes(31, job.plan));
  EXPECT_GT(one.report.prefill_seconds, 0);
  EXPECT_GT(one.report.decode_seconds, 0);
  // Two share the weights of a step.
  one = {};
  submit(scheduler, 1, job, one);
  submit(scheduler, 2, job, two);
  run(scheduler);
  const int64_t weights = setup.model.decode_weight_bytes();
  EXPECT_EQ(two.report.decode_bytes, setup.engine.decode_bytes(31, job.plan) - weights + weights / 2);
  const SchedulerState state = scheduler.state();
  EXPECT_EQ(state.jobs, 3);
  EXPECT_EQ(state.decoded_tokens, 3);
  EXPECT_EQ(state.prompt_tokens, 90);
  EXPECT_GT(state.prefill_seconds, 0);
  EXPECT_GT(state.decode_seconds, 0);
}

}  // namespace
}  // namespace tidal::test
