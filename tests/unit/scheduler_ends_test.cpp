// How jobs end that cannot go on: without room, refused, by errors.
#include <array>
#include <deque>
#include <stdexcept>

#include "unit/scheduler_setup.h"

namespace tidal::test {
namespace {

TEST(Scheduler, TheContextEndsAText) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), {.context = 100, .chunk = 64, .sequences = 1});
  for (const int kind : {0, 1, 3}) {
    for (const int length : {90, 100}) {
      JobSetup job = job_of_kind(kind, random_tokens(length, 1), -1, 3);
      const auto [text, end] = alone(setup.engine, job);
      job.use_cache = true;
      Scheduler scheduler(setup.engine, {});
      // With the first prompt's blocks in the cache the pool is full.
      Outcome before, outcome;
      submit(scheduler, 1, {.prompt = random_tokens(99, 7), .most = 1}, before);
      submit(scheduler, 2, job, outcome);
      run(scheduler);
      EXPECT_EQ(end, JobEnd::ContextFull);
      EXPECT_EQ(outcome.end, end);
      EXPECT_EQ(outcome.text, text);
      EXPECT_EQ(outcome.text.size(), 101u - length);
      // Once more, in a block that the cache shares and that cannot be copied.
      Outcome again;
      submit(scheduler, 3, job, again);
      run(scheduler);
      EXPECT_EQ(again.end, end);
      EXPECT_EQ(again.text.size(), text.size());
    }
  }
}

TEST(Scheduler, BlocksThatOthersHoldEndAJob) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), {.context = 512, .chunk = 64, .sequences = 2});
  Scheduler scheduler(setup.engine, {});
  const Sequence others = setup.prefilled(400, 1);  // 7 of 9 blocks
  Outcome decoding, never;
  submit(scheduler, 1, {.prompt = random_tokens(100, 2), .most = -1}, decoding);
  submit(scheduler, 2, {.prompt = random_tokens(200, 3), .most = -1}, never);
  run(scheduler);
  EXPECT_EQ(decoding.end, JobEnd::ContextFull);
  EXPECT_EQ(decoding.text.size(), 29u);  // 128 positions, and one that is not in the cache
  EXPECT_EQ(never.end, JobEnd::Failed);
  EXPECT_EQ(never.report.error, "KV cache: 200 tokens need 4 more blocks of 64 tokens, but others hold all but 2 of 9");
}

TEST(Scheduler, RefusesJobsThatCannotRun) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), roomy());
  Scheduler scheduler(setup.engine, {});
  Outcome outcome;
  const auto error = [&](const std::function<void(Job&)>& change) {
    Job job = make_job({.prompt = {1, 2}}, outcome);
    change(job);
    return error_of([&] { scheduler.submit(1, job); });
  };
  EXPECT_EQ(error([](Job& job) { job.prompt.clear(); }), "prompt: it is empty, at least one token is needed");
  EXPECT_EQ(error([](Job& job) { job.prompt.resize(513); }), "prompt: 513 tokens do not fit in a context of 512");
  EXPECT_EQ(error([](Job& job) { job.prompt[1] = 97; }), "prompt: token 97 is outside the vocabulary of 97");
  EXPECT_EQ(error([](Job& job) { job.exact = -1; }), "exact: -1 drafts given, at least 0 is needed");
  EXPECT_NE(error([](Job& job) { job.plan = Plan::full(5); }), "no error");
  EXPECT_NE(error([](Job& job) { job.chooser = nullptr; }), "no error");
  EXPECT_EQ(error([](Job& job) { job.chooser = std::make_unique<DrawingChooser>(1, 98); }),
            "scheduler: the chooser wants the 98 most likely tokens, expected at most 97");
  EXPECT_NE(error_of([&] { Scheduler(setup.engine, {.queue = -1}); }), "no error");
  EXPECT_TRUE(scheduler.idle());
  EXPECT_FALSE(outcome.end);
}

/// Gives tokens until it throws, or one outside the vocabulary.
class FailingChooser final : public TokenChooser {
 public:
  explicit FailingChooser(bool throws) : throws_(throws) {}
  int likely() const override { return 1; }
  Token choose(const Prospects& next) override {
    if (++count_ < 4) return next.likely[0].token;
    if (throws_) throw std::runtime_error("no grammar allows it");
    return 97;
  }
  void begin_draft() override {}
  Token draft(const Prospects& next) override { return next.likely[0].token; }
  bool ends(Token) const override { return false; }

 private:
  bool throws_;
  int count_ = 0;
};

TEST(Scheduler, AnErrorOfOneJobEndsThatJob) {
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), roomy(8));
  Scheduler scheduler(setup.engine, {});
  std::deque<Outcome> outcomes(7);
  const JobSetup good{.prompt = random_tokens(30, 1), .most = 20};
  const auto submit_changed = [&](int id, const std::function<void(Job&)>& change) {
    Job job = make_job(good, outcomes[id]);
    change(job);
    ASSERT_TRUE(scheduler.submit(id, job));
  };
  submit_changed(0, [](Job&) {});
  submit_changed(1, [](Job& job) { job.chooser = std::make_unique<FailingChooser>(true); });
  submit_changed(2, [](Job& job) { job.chooser = std::make_unique<FailingChooser>(false); });
  submit_changed(3, [](Job& job) { job.token = [](Token) -> bool { throw std::runtime_error("gone"); }; });
  submit_changed(4, [](Job& job) { job.prefilled = [](int, int) { throw 7; }; });
  submit_changed(5, [](Job& job) {
    job.exact = 3;
    job.chooser = std::make_unique<FailingChooser>(true);
  });
  submit_changed(6, [&](Job& job) {
    job.token = [](Token) { return false; };
    job.finished = [&](JobEnd end, const JobReport&) {
      outcomes[6].end = end;
      throw std::runtime_error("nobody listens");
    };
  });
  run(scheduler);
  EXPECT_EQ(outcomes[0].text, alone(setup.engine, good).first);
  const std::array<std::string, 6> errors = {
      "",     "no grammar allows it",    "chooser: token 97 is outside the vocabulary of 97",
      "gone", "an error without a text", "no grammar allows it"};
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(outcomes[i].end, i > 0 ? JobEnd::Failed : JobEnd::Limit) << i;
    EXPECT_EQ(outcomes[i].report.error, errors[i]);
  }
  EXPECT_EQ(outcomes[1].text.size(), 3u);
  EXPECT_EQ(outcomes[6].end, JobEnd::Stopped);
  expect_all_blocks_back(scheduler, setup.engine);
}

TEST(Scheduler, AnErrorOfTheEngineEndsTheStepsJobs) {
  struct Failing final : ForwardObserver {
    void attended(int, const Batch&, Rows, KvLayer, const Selection&) override { fail("the device is gone"); }
  } failing;
  SmallEngine setup("cpu", GGML_TYPE_F32, small_plan(), roomy(2));
  Scheduler scheduler(setup.engine, {});
  std::deque<Outcome> outcomes(3);
  const JobSetup job{.prompt = random_tokens(30, 1), .most = 20, .use_cache = true};
  for (int i = 0; i < 3; ++i) submit(scheduler, i, job, outcomes[i]);
  scheduler.step();
  setup.engine.set_observer(&failing);
  scheduler.step();
  setup.engine.set_observer(nullptr);
  run(scheduler);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(outcomes[i].end, JobEnd::Failed);
    EXPECT_EQ(outcomes[i].report.error, "the device is gone");
  }
  EXPECT_EQ(outcomes[2].end, JobEnd::Limit);
  EXPECT_EQ(outcomes[2].text, alone(setup.engine, job).first);
  expect_all_blocks_back(scheduler, setup.engine);
}

}  // namespace
}  // namespace tidal::test
