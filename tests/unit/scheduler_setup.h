// Jobs for the scheduler's tests, and the text that each has alone.
#pragma once

#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "engine/scheduler.h"
#include "unit/engine_setup.h"

namespace tidal::test {

/// Draws by inverse transform from logits or the most likely tokens; number i of a seed is the same for a draft and for
/// the token itself.
class DrawingChooser final : public TokenChooser {
 public:
  explicit DrawingChooser(uint64_t seed, int likely = 0, Token end = -1) : seed_(seed), likely_(likely), end_(end) {}

  int likely() const override { return likely_; }
  Token choose(const Prospects& next) override { return draw(next, count_++); }
  void begin_draft() override { drafting_ = count_; }
  Token draft(const Prospects& next) override { return draw(next, drafting_++); }
  bool ends(Token token) const override { return token == end_; }

 private:
  Token draw(const Prospects& next, uint64_t number) const {
    EXPECT_EQ(next.likely.size(), static_cast<size_t>(likely_));
    EXPECT_EQ(next.logits.empty(), likely_ > 0);
    std::vector<LikelyToken> tokens(next.likely.begin(), next.likely.end());
    for (size_t i = 0; i < next.logits.size(); ++i) tokens.push_back({static_cast<Token>(i), next.logits[i]});
    Random random(seed_ * 1000 + number);
    double sum = 0, passed = 0;
    for (const LikelyToken& token : tokens) sum += std::exp(token.logit);
    const double drawn = (random.uniform(0.5f) + 0.5) * sum;
    for (const LikelyToken& token : tokens) {
      passed += std::exp(token.logit);
      if (passed >= drawn) return token.token;
    }
    return tokens.back().token;
  }

  uint64_t seed_;
  int likely_;
  Token end_;
  uint64_t count_ = 0, drafting_ = 0;
};

/// What a job is made from, as often as it takes.
struct JobSetup {
  std::vector<Token> prompt;
  int64_t most = 10;
  Plan plan = Plan::full(6);
  int exact = 0;
  uint64_t seed = 1;
  int likely = 0;
  Token end = -1;
  bool use_cache = false;
};

/// What a job gave.
struct Outcome {
  std::vector<Token> text;
  std::optional<JobEnd> end;
  JobReport report;
  std::vector<int> prefilled;
};

inline Job make_job(const JobSetup& setup, Outcome& outcome) {
  Job job;
  job.prompt = setup.prompt;
  job.most = setup.most;
  job.plan = setup.plan;
  job.exact = setup.exact;
  job.use_cache = setup.use_cache;
  job.chooser = std::make_unique<DrawingChooser>(setup.seed, setup.likely, setup.end);
  job.prefilled = [&outcome](int done, int) { outcome.prefilled.push_back(done); };
  job.token = [&outcome](Token token) {
    EXPECT_FALSE(outcome.end);
    outcome.text.push_back(token);
    return true;
  };
  job.finished = [&outcome](JobEnd end, const JobReport& report) {
    EXPECT_FALSE(outcome.end) << "ended twice";
    outcome.end = end;
    outcome.report = report;
  };
  return job;
}

/// The text without a scheduler, as generation/generator.cpp makes it.
inline std::pair<std::vector<Token>, JobEnd> alone(Engine& engine, const JobSetup& setup) {
  engine.set_plan(setup.plan);
  DrawingChooser chooser(setup.seed, setup.likely, setup.end);
  Sequence sequence = engine.create();
  std::optional<ExactDecoder> exact;
  if (setup.exact > 0) exact.emplace(engine, ExactOptions{.drafts = setup.exact});
  std::vector<LikelyToken> likely(setup.likely);
  std::span<const float> logits = engine.prefill(sequence, setup.prompt);
  const auto choose = [&](std::span<const float> logits) {
    if (likely.empty()) return chooser.choose({.logits = logits, .likely = {}});
    select_likely(logits, likely);
    return chooser.choose({.logits = {}, .likely = likely});
  };
  std::vector<Token> text, chosen;
  while (setup.most < 0 || static_cast<int64_t>(text.size()) < setup.most) {
    if (text.empty()) {
      chosen = {choose(logits)};
    } else if (sequence.length() + 1 > engine.options().context) {
      return {text, JobEnd::ContextFull};
    } else if (exact) {
      const int most = setup.most < 0 ? 1 << 30 : static_cast<int>(setup.most) - static_cast<int>(text.size());
      const auto tokens = exact->advance(sequence, text.back(), most, chooser);
      chosen.assign(tokens.begin(), tokens.end());
    } else {
      chosen = {choose(engine.decode(sequence, text.back()))};
    }
    for (const Token token : chosen) {
      if (chooser.ends(token)) return {text, JobEnd::EndToken};
      text.push_back(token);
    }
  }
  return {text, JobEnd::Limit};
}

/// Plans of every kind, and exact mode: number `kind` of 6, over again.
inline JobSetup job_of_kind(int kind, std::vector<Token> prompt, int64_t most, uint64_t seed) {
  JobSetup setup{.prompt = std::move(prompt), .most = most, .seed = seed};
  switch (kind % 6) {
    case 0: break;
    case 1: setup.plan = small_plan(); break;
    case 2: setup.plan = Plan::sketch(6, 1, sketch_policy(kBudget)); break;
    case 3:
      setup.plan = small_plan();
      setup.exact = 5;
      break;
    case 4:
      setup.plan = small_plan();
      setup.plan.correct = 7;
      break;
    case 5:
      setup.plan = Plan::sketch(6, 0, sketch_policy(kBudget));
      setup.plan.policy.sketch_bits = setup.plan.policy.sketch_bits == 1 ? 2 : 1;
      break;
  }
  setup.likely = std::array{0, 1, 5}[seed % 3];
  return setup;
}

/// A pool for everything that the tests run at once.
inline EngineOptions roomy(int sequences = 5) {
  return {.context = 512, .tokens = int64_t{512} * sequences, .chunk = 64, .sequences = sequences};
}

inline void submit(Scheduler& scheduler, JobId id, const JobSetup& setup, Outcome& outcome) {
  Job job = make_job(setup, outcome);
  ASSERT_TRUE(scheduler.submit(id, job));
}

inline void expect_all_blocks_back(Scheduler& scheduler, Engine& engine) {
  const SchedulerState state = scheduler.state();
  EXPECT_EQ(state.free_blocks + state.cached_blocks, state.blocks);
  scheduler.clear_cache();
  EXPECT_EQ(engine.pool().free_blocks(), engine.pool().blocks());
}

inline void run(Scheduler& scheduler, int most_steps = 5000) {
  while (!scheduler.idle() && most_steps-- > 0) scheduler.step();
  EXPECT_TRUE(scheduler.idle());
}

}  // namespace tidal::test
