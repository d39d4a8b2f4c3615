// Layers that keep their window only, in the scheduler: texts are what they are alone where these keep the whole
// context, whatever runs short.
#include "unit/scheduler_setup.h"

namespace tidal {
namespace {

using test::alone;
using test::JobSetup;
using test::make_job;
using test::Outcome;
using test::random_tokens;
using test::small_windowed;
using test::SmallEngine;

constexpr int kWindow = 70;

class WindowsScheduler : public test::BackendTest<std::string> {
 protected:
  static Hyperparameters hp() { return small_windowed(kWindow); }
  static Plan sparse_plan() { return Plan::sketch(hp(), 1, sketch_policy(test::kBudget)); }
  static EngineOptions options(bool whole, int tokens, int windows, int sequences = 3) {
    EngineOptions options{.context = 1024, .tokens = tokens, .chunk = 64, .sequences = sequences};
    options.whole_windows = whole;
    options.windows = windows;
    return options;
  }

  /// A prompt of `shared` tokens that all have, and `own` that nobody else has.
  static std::vector<Token> prompt(int shared, int own, uint64_t stream) {
    std::vector<Token> tokens = random_tokens(shared, 1);
    const std::vector<Token> more = random_tokens(own, stream);
    tokens.insert(tokens.end(), more.begin(), more.end());
    return tokens;
  }
  static JobSetup job(int kind, std::vector<Token> prompt, int most, uint64_t seed) {
    JobSetup setup{.prompt = std::move(prompt), .most = most, .plan = Plan::full(9), .seed = seed};
    if (kind % 4 != 0) setup.plan = sparse_plan();
    if (kind % 4 == 2) setup.exact = 5;
    if (kind % 4 == 3) setup.plan.correct = 7;
    return setup;
  }
  static std::vector<Outcome> run(Scheduler& scheduler, const std::vector<JobSetup>& setups) {
    std::vector<Outcome> outcomes(setups.size());
    for (size_t i = 0; i < setups.size(); ++i) test::submit(scheduler, i, setups[i], outcomes[i]);
    test::run(scheduler);
    return outcomes;
  }
  void expect_all_back(Scheduler& scheduler, SmallEngine& setup) {
    test::expect_all_blocks_back(scheduler, setup.engine);
    const WindowPool& windows = setup.engine.pool().windows();
    ASSERT_TRUE(windows);
    EXPECT_EQ(windows.free_blocks(), windows.blocks() - 1);
  }

  SmallEngine whole{GetParam(), hp(), GGML_TYPE_F32, sparse_plan(), options(true, 4096, 0)};
};

// Not the reference backend: ten times slower, and what is tested here is the scheduler, which knows no backend. Its
// windows are tested in windows_test.cpp.
INSTANTIATE_TEST_SUITE_P(All, WindowsScheduler, testing::Values("cpu"), [](const auto& info) { return info.param; });

TEST_P(WindowsScheduler, TextsAreWhatTheyAreAlone) {
  SmallEngine thin(GetParam(), hp(), GGML_TYPE_F32, sparse_plan(), options(false, 4096, 0));
  std::vector<JobSetup> setups;
  for (int i = 0; i < 8; ++i) {
    setups.push_back(job(i, prompt(0, 40 + 57 * i, 2 + static_cast<uint64_t>(i)), 30, static_cast<uint64_t>(i)));
  }
  Scheduler scheduler(thin.engine, {});
  const std::vector<Outcome> outcomes = run(scheduler, setups);
  for (size_t i = 0; i < setups.size(); ++i) {
    const auto [text, end] = alone(whole.engine, setups[i]);
    EXPECT_EQ(outcomes[i].text, text) << i;
    EXPECT_EQ(outcomes[i].end, end) << i << outcomes[i].report.error;
  }
  expect_all_back(scheduler, thin);
}

TEST_P(WindowsScheduler, CachedBeginningsEndBehindAWindowThatIsThere) {
  SmallEngine thin(GetParam(), hp(), GGML_TYPE_F32, sparse_plan(), options(false, 4096, 2));
  Scheduler scheduler(thin.engine, {});
  const auto cached = [&](JobSetup setup) {
    setup.use_cache = true;
    const std::vector<Outcome> outcomes = run(scheduler, {setup});
    EXPECT_EQ(outcomes[0].text, alone(whole.engine, setup).first) << outcomes[0].report.error;
    return outcomes[0].report.cached_tokens;
  };
  const JobSetup first = job(0, prompt(600, 50, 2), 20, 1);
  EXPECT_EQ(cached(first), 0);
  EXPECT_EQ(cached(first), thin.engine.reusable(650)) << "the same once more";
  // One that goes on with text and answer.
  JobSetup longer = first;
  const std::vector<Token> answer = alone(whole.engine, first).first;
  longer.prompt.insert(longer.prompt.end(), answer.begin(), answer.end());
  const std::vector<Token> question = random_tokens(40, 9);
  longer.prompt.insert(longer.prompt.end(), question.begin(), question.end());
  EXPECT_EQ(cached(longer), 669) << "all but the answer's last token";
  // What ends among the first chunks goes on behind one that was saved, or begins at the beginning.
  const int other = cached(job(2, prompt(600, 33, 3), 20, 2));
  EXPECT_GT(other, 500);
  EXPECT_LE(other, 600);
  cached(job(1, prompt(250, 50, 4), 20, 3));
  expect_all_back(scheduler, thin);
}

TEST_P(WindowsScheduler, PreemptedJobsGoOnWithTheSameText) {
  for (const bool use_cache : {false, true}) {
    // The pool has room for about two of the four.
    SmallEngine tight(GetParam(), hp(), GGML_TYPE_F32, sparse_plan(), options(false, 1600, 0, 2));
    Scheduler scheduler(tight.engine, {});
    std::vector<JobSetup> setups;
    for (int i = 0; i < 4; ++i) {
      setups.push_back(
          job(i % 3, prompt(0, 700 + 13 * i, 10 + static_cast<uint64_t>(i)), 150, static_cast<uint64_t>(i)));
      setups.back().use_cache = use_cache;
    }
    const std::vector<Outcome> outcomes = run(scheduler, setups);
    EXPECT_GT(scheduler.state().preemptions, 0) << "nothing ran short";
    for (size_t i = 0; i < setups.size(); ++i) {
      EXPECT_EQ(outcomes[i].text, alone(whole.engine, setups[i]).first) << i << outcomes[i].report.error;
    }
    expect_all_back(scheduler, tight);
  }
}

TEST_P(WindowsScheduler, PreemptedJobsThatCorrectDoAsWithWholeContexts) {
  // What waits for its correction is corrected when a job has to wait, so their text hangs on when that is: without
  // exact mode, whose rounds are as long as pays, after the same steps.
  std::vector<JobSetup> setups;
  for (const int kind : {0, 3, 1, 3}) {
    const auto i = static_cast<int>(setups.size());
    setups.push_back(job(kind, prompt(0, 700 + 13 * i, 10 + static_cast<uint64_t>(i)), 150, static_cast<uint64_t>(i)));
  }
  const auto texts = [&](bool keeps_all) {
    SmallEngine tight(GetParam(), hp(), GGML_TYPE_F32, sparse_plan(), options(keeps_all, 1600, 0, 2));
    Scheduler scheduler(tight.engine, {});
    std::vector<std::vector<Token>> texts;
    for (const Outcome& outcome : run(scheduler, setups)) texts.push_back(outcome.text);
    EXPECT_GT(scheduler.state().preemptions, 0) << "nothing ran short";
    return texts;
  };
  EXPECT_EQ(texts(false), texts(true));
}

TEST_P(WindowsScheduler, ManyJobsWithTheSameBeginnings) {
  SmallEngine thin(GetParam(), hp(), GGML_TYPE_F32, sparse_plan(), options(false, 2048, 0));
  Scheduler scheduler(thin.engine, {});
  std::vector<JobSetup> setups;
  test::Random random(7);
  for (int i = 0; i < 14; ++i) {
    // Without exact mode, whose rounds are as long as pays: what is found must be the same every time.
    const int kind = i % 3 == 2 ? 3 : i % 3;
    setups.push_back(job(kind, prompt(random.integer(1, 5) * 70, random.integer(1, 200), static_cast<uint64_t>(i)),
                         random.integer(1, 60), static_cast<uint64_t>(i)));
    setups.back().use_cache = true;
  }
  const std::vector<Outcome> outcomes = run(scheduler, setups);
  EXPECT_GT(scheduler.state().cached_tokens, 0) << "nothing was found again";
  for (size_t i = 0; i < setups.size(); ++i) {
    EXPECT_EQ(outcomes[i].text, alone(whole.engine, setups[i]).first) << i << outcomes[i].report.error;
  }
  expect_all_back(scheduler, thin);
}

}  // namespace
}  // namespace tidal
