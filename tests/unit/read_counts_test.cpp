// What jobs are told of their reads, held against what the probe of attention sees of each job alone.
#include "engine/read_counts.h"

#include <deque>
#include <map>

#include "engine/attention_probe.h"
#include "unit/scheduler_setup.h"

namespace tidal::test {
namespace {

class ReadCounts : public BackendTest<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, ReadCounts, testing::ValuesIn(kBackends), [](const auto& info) { return info.param; });

/// Any roles that may follow each other, any policy.
Plan random_plan(Random& random, int layers) {
  Plan plan;
  bool selected = false;
  for (int layer = 0; layer < layers; ++layer) {
    constexpr Role kRoles[] = {Role::Dense, Role::Select, Role::Scan, Role::Sparse};
    plan.roles.push_back(kRoles[random.integer(0, selected ? 3 : 2)]);
    selected = selected || selects(plan.roles.back());
  }
  plan.policy.scope = std::array{Scope::Head, Scope::Kv, Scope::Shared}[random.integer(0, 2)];
  plan.policy.pooling = random.integer(0, 1) ? Pooling::Sum : Pooling::Max;
  plan.policy.budget = random.integer(3, 60);
  plan.policy.sinks = random.integer(0, 1);
  plan.policy.recent = random.integer(0, plan.policy.budget - plan.policy.sinks);
  if (plan.policy.pooling == Pooling::Sum && random.integer(0, 2) == 0) plan.policy.top_p = 0.7;
  return plan;
}

/// By the probe, which reads every layer's attention back.
StepReads seen_by(const AttentionProbe& probe, const Policy& policy, int position) {
  StepReads reads{.position = position};
  std::map<int32_t, int32_t> counts;
  const std::vector<std::vector<int32_t>>* sets = nullptr;
  for (const LayerAttention& layer : probe.layers()) {
    if (selects(layer.role)) {
      sets = &layer.selected;
      const Reserved reserved =
          reserved_positions(layer.role == Role::Scan ? scan_policy(policy, position + 1) : policy);
      reads.sinks = reserved.sinks;
      reads.recent = reserved.recent;
    }
    if (!reads_selected(layer.role)) continue;
    reads.sets += static_cast<int>(sets->size());
    for (const std::vector<int32_t>& set : *sets) {
      for (const int32_t chosen : set) ++counts[chosen];
    }
  }
  for (const auto& [chosen, count] : counts) reads.positions.push_back({chosen, count});
  return reads;
}

/// The steps of a job without a scheduler, each as the probe saw it.
std::vector<StepReads> alone_with_probe(Engine& engine, const JobSetup& setup) {
  engine.set_plan(setup.plan);
  DrawingChooser chooser(setup.seed);
  Sequence sequence = engine.create();
  const AttentionProbe probe(engine);
  std::vector<StepReads> steps;
  Token token = chooser.choose({.logits = engine.prefill(sequence, setup.prompt), .likely = {}});
  for (int64_t count = 1; count < setup.most; ++count) {
    const int position = sequence.length();
    token = chooser.choose({.logits = engine.decode(sequence, token), .likely = {}});
    steps.push_back(seen_by(probe, setup.plan.policy, position));
  }
  return steps;
}

void submit(Scheduler& scheduler, JobId id, const JobSetup& setup, Outcome& outcome, std::vector<StepReads>& steps) {
  Job job = make_job(setup, outcome);
  job.reads = [&steps](const StepReads& reads) { steps.push_back(reads); };
  ASSERT_TRUE(scheduler.submit(id, job));
}

TEST_P(ReadCounts, AreWhatTheProbeSees) {
  SmallEngine setup(GetParam(), GetParam() == "reference" ? GGML_TYPE_F32 : GGML_TYPE_Q8_0, small_plan(), roomy());
  Random random(5);
  const int jobs = GetParam() == "reference" ? 6 : 24;
  std::vector<JobSetup> setups;
  std::vector<std::vector<StepReads>> expected;
  std::vector<std::vector<Token>> texts;
  for (int i = 0; i < jobs; ++i) {
    JobSetup job{.prompt = random_tokens(random.integer(1, 150), 300 + i), .most = random.integer(2, 12)};
    job.plan = i % 6 == 0 ? Plan::full(6) : random_plan(random, 6);
    if (i % 4 == 1) job.plan.correct = 3;
    job.seed = i;
    expected.push_back(alone_with_probe(setup.engine, job));
    texts.push_back(alone(setup.engine, job).first);
    setups.push_back(std::move(job));
  }
  Scheduler scheduler(setup.engine, {});
  std::deque<Outcome> outcomes(jobs);
  std::deque<std::vector<StepReads>> steps(jobs);
  for (int i = 0; i < jobs; ++i) {
    // Every third does not ask: it is told nothing, and nobody else is told what it reads.
    if (i % 3 == 2) {
      submit(scheduler, i, setups[i], outcomes[i]);
    } else {
      submit(scheduler, i, setups[i], outcomes[i], steps[i]);
    }
    for (int count = random.integer(0, 3); count > 0; --count) scheduler.step();
  }
  run(scheduler);
  int sparse = 0, partial = 0;
  for (int i = 0; i < jobs; ++i) {
    EXPECT_EQ(outcomes[i].text, texts[i]) << "job " << i;
    if (i % 3 == 2) continue;
    EXPECT_TRUE(steps[i] == expected[i]) << "job " << i;
    for (const StepReads& step : steps[i]) {
      sparse += step.sets > 0;
      for (const PositionReads& read : step.positions) partial += read.sets < step.sets;
    }
  }
  EXPECT_GT(sparse, jobs / 2);
  EXPECT_GT(partial, jobs);  // layers and heads did not all read the same
}

TEST_P(ReadCounts, APreemptedJobIsToldOfEveryStepOnce) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), {.context = 256, .chunk = 32, .sequences = 4});
  Scheduler scheduler(setup.engine, {});
  std::deque<Outcome> outcomes(5);
  std::deque<std::vector<StepReads>> steps(5);
  for (int i = 0; i < 5; ++i) {
    JobSetup job{.prompt = random_tokens(20 + 5 * i, 400 + i), .most = 110, .plan = small_plan(), .seed = 1};
    submit(scheduler, i, job, outcomes[i], steps[i]);
  }
  run(scheduler);
  EXPECT_GE(scheduler.state().preemptions, 1);
  for (int i = 0; i < 5; ++i) {
    ASSERT_EQ(steps[i].size(), 109u);
    for (int step = 0; step < 109; ++step) EXPECT_EQ(steps[i][step].position, 20 + 5 * i + step);
  }
}

TEST_P(ReadCounts, ExactModeReadsEverything) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), roomy());
  Scheduler scheduler(setup.engine, {});
  Outcome outcome;
  std::vector<StepReads> steps;
  JobSetup job = job_of_kind(3, random_tokens(60, 1), 12, 0);
  submit(scheduler, 1, job, outcome, steps);
  run(scheduler);
  ASSERT_FALSE(steps.empty());
  for (const StepReads& step : steps) {
    EXPECT_EQ(step.sets, 0);
    EXPECT_TRUE(step.positions.empty());
  }
  EXPECT_EQ(steps.back().position, 60 + 11 - 1);  // the last token is not in the cache
}

TEST_P(ReadCounts, AListenerThatThrowsEndsItsJobAlone) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), roomy());
  Scheduler scheduler(setup.engine, {});
  std::deque<Outcome> outcomes(2);
  Job job = make_job({.prompt = random_tokens(40, 1), .plan = small_plan()}, outcomes[0]);
  job.reads = [](const StepReads& /*reads*/) { throw std::runtime_error("too much to read"); };
  ASSERT_TRUE(scheduler.submit(1, job));
  std::vector<StepReads> steps;
  submit(scheduler, 2, {.prompt = random_tokens(40, 2), .plan = small_plan()}, outcomes[1], steps);
  run(scheduler);
  EXPECT_EQ(outcomes[0].end, JobEnd::Failed);
  EXPECT_EQ(outcomes[0].report.error, "too much to read");
  EXPECT_EQ(outcomes[1].end, JobEnd::Limit);
  EXPECT_EQ(steps.size(), 9u);
  // Nothing goes on watching the engine.
  Sequence sequence = setup.prefilled(40, 3);
  setup.engine.decode(sequence, 1);
}

}  // namespace
}  // namespace tidal::test
