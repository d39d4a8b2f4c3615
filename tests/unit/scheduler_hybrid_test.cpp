// Hybrids in the scheduler: cached beginnings end where there is a state, and texts are what they are alone.
#include "unit/scheduler_setup.h"

namespace tidal {
namespace {

using test::alone;
using test::JobSetup;
using test::make_job;
using test::Outcome;
using test::random_tokens;
using test::small_hybrid;
using test::SmallEngine;

/// Without cuda: it runs no hybrids.
class HybridScheduler : public test::BackendTest<std::string> {
 protected:
  static Plan sparse_plan() { return Plan::tidal(small_hybrid(), 6, default_policy(test::kBudget)); }

  /// A prompt of `shared` tokens that all have, and `own` that nobody else has.
  static std::vector<Token> prompt(int shared, int own, uint64_t stream) {
    std::vector<Token> tokens = random_tokens(shared, 1);
    const std::vector<Token> more = random_tokens(own, stream);
    tokens.insert(tokens.end(), more.begin(), more.end());
    return tokens;
  }
  static void run(Scheduler& scheduler, const std::vector<JobSetup>& setups, std::vector<Outcome>& outcomes) {
    outcomes = std::vector<Outcome>(setups.size());
    for (size_t i = 0; i < setups.size(); ++i) {
      Job job = make_job(setups[i], outcomes[i]);
      ASSERT_TRUE(scheduler.submit(i, job));
    }
    while (!scheduler.idle()) scheduler.step();
  }

  SmallEngine setup{GetParam(),
                    small_hybrid(),
                    GGML_TYPE_F32,
                    sparse_plan(),
                    {.context = 512, .tokens = 2048, .chunk = 64, .sequences = 3}};
};

INSTANTIATE_TEST_SUITE_P(All, HybridScheduler, testing::Values("reference", "cpu"),
                         [](const auto& info) { return info.param; });

TEST_P(HybridScheduler, TextsAreWhatTheyAreAlone) {
  Plan correcting = sparse_plan();
  correcting.correct = 5;
  const std::vector<JobSetup> setups = {
      {.prompt = prompt(100, 60, 2), .most = 20, .plan = Plan::full(8)},
      {.prompt = prompt(100, 30, 3), .most = 30, .plan = sparse_plan(), .seed = 2},
      {.prompt = prompt(100, 9, 4), .most = 20, .plan = sparse_plan(), .exact = 4, .seed = 3},
      {.prompt = prompt(100, 80, 5), .most = 25, .plan = correcting, .seed = 4},
      {.prompt = prompt(3, 2, 6), .most = 15, .plan = sparse_plan(), .seed = 5}};
  std::vector<Outcome> outcomes;
  {
    Scheduler scheduler(setup.engine, {});
    run(scheduler, setups, outcomes);
  }
  for (size_t i = 0; i < setups.size(); ++i) {
    const auto [text, end] = alone(setup.engine, setups[i]);
    EXPECT_EQ(outcomes[i].text, text) << i;
    EXPECT_EQ(outcomes[i].end, end) << i << outcomes[i].report.error;
  }
  EXPECT_EQ(setup.engine.pool().states().free_states(), setup.engine.pool().states().states()) << "some are lost";
}

TEST_P(HybridScheduler, CachedBeginningsEndAtASavedState) {
  Scheduler scheduler(setup.engine, {});
  std::vector<Outcome> outcomes;
  // The chunks end at 64, 128 and 170; the second prompt has 150 tokens in common, the third all of the first.
  run(scheduler, {{.prompt = prompt(150, 20, 2), .plan = Plan::full(8), .use_cache = true}}, outcomes);
  EXPECT_EQ(outcomes[0].report.cached_tokens, 0);
  const JobSetup second{.prompt = prompt(150, 40, 3), .plan = Plan::full(8), .use_cache = true};
  run(scheduler, {second}, outcomes);
  EXPECT_EQ(outcomes[0].report.cached_tokens, 128);
  EXPECT_EQ(outcomes[0].text, alone(setup.engine, second).first);
  const JobSetup third{.prompt = prompt(150, 20, 2), .plan = sparse_plan(), .exact = 3, .use_cache = true};
  run(scheduler, {third}, outcomes);
  EXPECT_EQ(outcomes[0].report.cached_tokens, 128);
  EXPECT_EQ(outcomes[0].text, alone(setup.engine, third).first);
  // Nothing that ends before the first state.
  run(scheduler, {{.prompt = prompt(63, 20, 9), .plan = Plan::full(8), .use_cache = true}}, outcomes);
  EXPECT_EQ(outcomes[0].report.cached_tokens, 0);
}

TEST_P(HybridScheduler, PromptsShorterThanAChunkLeaveAStateAtTheirLastBlock) {
  SmallEngine large(GetParam(), small_hybrid(), GGML_TYPE_F32, sparse_plan(),
                    {.context = 512, .tokens = 2048, .chunk = 512, .sequences = 2});
  std::vector<Outcome> outcomes;
  const JobSetup first{.prompt = prompt(200, 10, 2), .plan = Plan::full(8), .use_cache = true};
  const JobSetup second{.prompt = prompt(200, 40, 3), .plan = Plan::full(8), .use_cache = true};
  Scheduler scheduler(large.engine, {});
  run(scheduler, {first}, outcomes);
  EXPECT_EQ(outcomes[0].prefilled, (std::vector<int>{192, 210}));
  EXPECT_EQ(outcomes[0].text, alone(large.engine, first).first);
  run(scheduler, {second}, outcomes);
  EXPECT_EQ(outcomes[0].report.cached_tokens, 192);
  EXPECT_EQ(outcomes[0].prefilled, (std::vector<int>{240}));
  EXPECT_EQ(outcomes[0].text, alone(large.engine, second).first);
}

TEST_P(HybridScheduler, APromptFindsItsOwnLastBlock) {
  SmallEngine large(GetParam(), small_hybrid(), GGML_TYPE_F32, sparse_plan(),
                    {.context = 512, .tokens = 2048, .chunk = 512, .sequences = 2});
  // All but the last token may come from the cache, as far as whole blocks go.
  for (const int length : {128, 129, 136, 137, 191}) {
    Scheduler scheduler(large.engine, {});
    std::vector<Outcome> outcomes;
    const JobSetup first{.prompt = prompt(length, 0, 2), .plan = Plan::full(8), .use_cache = true};
    run(scheduler, {first}, outcomes);
    EXPECT_EQ(outcomes[0].report.cached_tokens, 0) << length;
    const std::vector<Token> text = alone(large.engine, first).first;
    EXPECT_EQ(outcomes[0].text, text) << length;
    run(scheduler, {first}, outcomes);
    EXPECT_EQ(outcomes[0].report.cached_tokens, (length - 1) / kBlockTokens * kBlockTokens) << length;
    EXPECT_EQ(outcomes[0].text, text) << length;
    const JobSetup longer{.prompt = prompt(length, 40, 3), .plan = Plan::full(8), .use_cache = true};
    run(scheduler, {longer}, outcomes);
    EXPECT_EQ(outcomes[0].report.cached_tokens, length / kBlockTokens * kBlockTokens) << length;
    EXPECT_EQ(outcomes[0].text, alone(large.engine, longer).first) << length;
  }
}

TEST_P(HybridScheduler, DecodedTextLeavesStatesToo) {
  SmallEngine large(GetParam(), small_hybrid(), GGML_TYPE_F32, sparse_plan(),
                    {.context = 1024, .tokens = 4096, .chunk = 512, .sequences = 2});
  Plan correcting = sparse_plan();
  correcting.correct = 7;
  const JobSetup dense{.prompt = prompt(0, 500, 2), .most = 40, .plan = Plan::full(8)};
  struct Case {
    Plan plan;
    int exact, found;
  };
  std::vector<Token> dense_text;
  for (const auto& [plan, exact, found] : {Case{Plan::full(8), 0, 512},
                                           {sparse_plan(), 4, 512},
                                           {sparse_plan(), 12, 512},
                                           {correcting, 0, 512},
                                           {sparse_plan(), 0, 448}}) {
    Scheduler scheduler(large.engine, {});
    std::vector<Outcome> outcomes;
    JobSetup first = dense;
    first.plan = plan;
    first.exact = exact;
    run(scheduler, {first}, outcomes);
    JobSetup second = dense;
    second.most = 10;
    second.use_cache = true;
    second.prompt.insert(second.prompt.end(), outcomes[0].text.begin(), outcomes[0].text.end());
    const std::vector<Token> more = random_tokens(40, 9);
    second.prompt.insert(second.prompt.end(), more.begin(), more.end());
    run(scheduler, {second}, outcomes);
    EXPECT_EQ(outcomes[0].report.cached_tokens, found) << exact << " " << plan.correct;
    if (dense_text.empty()) dense_text = outcomes[0].text;
    // What exact mode leaves is what full attention leaves.
    EXPECT_TRUE(exact == 0 || outcomes[0].text == dense_text) << exact;
  }
}

TEST_P(HybridScheduler, TheCacheGivesUpStatesThatRunningJobsNeed) {
  SmallEngine few(GetParam(), small_hybrid(), GGML_TYPE_F32, sparse_plan(),
                  {.context = 512, .tokens = 2048, .chunk = 64, .sequences = 3, .states = 0});
  Scheduler scheduler(few.engine, {});
  std::vector<Outcome> outcomes;
  run(scheduler, {{.prompt = prompt(0, 200, 2), .plan = Plan::full(8), .use_cache = true}}, outcomes);
  EXPECT_LT(few.engine.pool().states().free_states(), 3) << "the cache holds none, so this tests nothing";
  const std::vector<JobSetup> setups = {{.prompt = prompt(0, 150, 3), .plan = Plan::full(8)},
                                        {.prompt = prompt(0, 90, 4), .plan = sparse_plan()},
                                        {.prompt = prompt(0, 140, 5), .plan = sparse_plan(), .exact = 4}};
  run(scheduler, setups, outcomes);
  for (size_t i = 0; i < setups.size(); ++i) {
    EXPECT_EQ(outcomes[i].text, alone(setup.engine, setups[i]).first) << i << outcomes[i].report.error;
  }
}

TEST_P(HybridScheduler, TheCacheGivesUpStatesThatItShares) {
  // Prompts of whole blocks: what each goes on with is what it has saved and the cache keeps.
  const std::vector<JobSetup> setups = {{.prompt = prompt(0, 128, 3), .plan = Plan::full(8)},
                                        {.prompt = prompt(0, 64, 4), .plan = sparse_plan()},
                                        {.prompt = prompt(0, 192, 5), .plan = sparse_plan(), .exact = 4}};
  for (const int states : {0, 1}) {
    SmallEngine few(GetParam(), small_hybrid(), GGML_TYPE_F32, sparse_plan(),
                    {.context = 512, .tokens = 2048, .chunk = 64, .sequences = 3, .states = states});
    Scheduler scheduler(few.engine, {});
    std::vector<Outcome> outcomes;
    for (int again = 0; again < 2; ++again) {
      run(scheduler, setups, outcomes);
      for (size_t i = 0; i < setups.size(); ++i) {
        EXPECT_EQ(outcomes[i].text, alone(setup.engine, setups[i]).first)
            << states << " " << i << outcomes[i].report.error;
      }
    }
  }
}

TEST_P(HybridScheduler, PreemptedJobsGoOnWithTheSameText) {
  SmallEngine tight(GetParam(), small_hybrid(), GGML_TYPE_F32, sparse_plan(),
                    {.context = 320, .tokens = 448, .chunk = 64, .sequences = 3});
  Scheduler scheduler(tight.engine, {});
  std::vector<JobSetup> setups;
  for (int i = 0; i < 3; ++i) {
    setups.push_back({.prompt = prompt(0, 100 + 13 * i, 10 + static_cast<uint64_t>(i)),
                      .most = 80,
                      .plan = i == 1 ? sparse_plan() : Plan::full(8),
                      .seed = static_cast<uint64_t>(i),
                      .use_cache = true});
  }
  std::vector<Outcome> outcomes;
  run(scheduler, setups, outcomes);
  EXPECT_GT(scheduler.state().preemptions, 0);
  for (size_t i = 0; i < setups.size(); ++i) {
    EXPECT_EQ(outcomes[i].text, alone(setup.engine, setups[i]).first) << i << outcomes[i].report.error;
  }
}

}  // namespace
}  // namespace tidal
