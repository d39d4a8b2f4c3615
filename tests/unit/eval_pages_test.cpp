// Pages as others select them: their scores by formula, as many as the bytes are enough for, attention to them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "eval/pages.h"
#include "support/error.h"
#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

float score_of(PageScore score, std::span<const float> keys, std::span<const float> query) {
  float result = 0;
  page_scores(score, static_cast<int>(query.size()), keys, query, {&result, 1});
  return result;
}

TEST(Pages, ScoresByHand) {
  // Two keys of two channels: means 2 and -1, deviations 1 and 3, mean square distance 10.
  const std::vector<float> keys = {1, 2, 3, -4}, query = {2, -1};
  EXPECT_EQ(score_of(PageScore::Bounds, keys, query), 6 + 4);
  EXPECT_EQ(score_of(PageScore::ChannelDeviations, keys, query), 5 + (2 + 3));
  // The deviation is kept in bf16: 8 bits of it.
  EXPECT_NEAR(score_of(PageScore::Deviation, keys, query), 5 + 0.5 * std::sqrt(5.0 * 10), 0.5 * std::sqrt(50.0) / 256);
}

TEST(Pages, BoundsAreNoLowerThanAnyKey) {
  std::vector<float> keys(8 * 16), queries(3 * 16);
  uint32_t state = 1;
  const auto value = [&] {
    state = state * 1664525u + 1013904223u;
    return to_float(to_bf16(static_cast<float>(state >> 16) / 32768.0f - 1));  // as a cache has them
  };
  std::generate(keys.begin(), keys.end(), value);
  std::generate(queries.begin(), queries.end(), value);
  std::vector<float> scores(3);
  page_scores(PageScore::Bounds, 16, keys, queries, scores);
  for (int h = 0; h < 3; ++h) {
    for (int i = 0; i < 8; ++i) {
      const double product = std::inner_product(keys.begin() + i * 16, keys.begin() + (i + 1) * 16,
                                                queries.begin() + static_cast<ptrdiff_t>(h) * 16, 0.0);
      EXPECT_GE(scores[static_cast<size_t>(h)], static_cast<float>(product));
    }
  }
  // Of a single key they are its product, and so is the mean.
  const auto key = std::span<const float>(keys).first(16), query = std::span<const float>(queries).first(16);
  EXPECT_EQ(score_of(PageScore::Bounds, key, query), score_of(PageScore::Deviation, key, query));
}

TEST(Pages, FirstAndLastAreAlwaysRead) {
  const PageRule rule{PageScore::Bounds, 16};
  // Of 100 positions the last page holds 4, of 96 it holds 16.
  for (const auto& [context, recent, pages] : {std::tuple{100, 1, 1},
                                               {100, 4, 1},
                                               {100, 5, 2},
                                               {100, 20, 2},
                                               {100, 21, 3},
                                               {96, 1, 1},
                                               {96, 16, 1},
                                               {96, 17, 2}}) {
    const Policy policy = page_policy({.budget = 64, .sinks = 0, .recent = recent, .top_p = 0.5}, rule, context, 5);
    EXPECT_EQ(policy.recent, pages) << context << " " << recent;
    EXPECT_EQ(policy.sinks, 1);
    EXPECT_EQ(policy.budget, 5);
    EXPECT_EQ(policy.top_p, 1);
  }
  // Two pages are these, whatever else is reserved.
  const Policy two = page_policy({.budget = 32, .sinks = 40, .recent = 32}, rule, 200, 2);
  EXPECT_EQ(two.recent, 1);
  EXPECT_EQ(two.sinks, 1);
  EXPECT_EQ(page_policy({.sinks = 16}, rule, 100, 5).sinks, 1);
  EXPECT_EQ(page_policy({.sinks = 17}, rule, 100, 5).sinks, 2);
}

TEST(Pages, Words) {
  for (const char* word : {"quest:16", "unique:8", "deviations:64", "quest:1"}) {
    std::string name = to_string(page_rule_from(word));
    std::replace(name.begin(), name.end(), ' ', ':');
    EXPECT_EQ(name, word);
  }
  EXPECT_EQ(to_string(page_rule_from("unique")), "unique 8");
  EXPECT_EQ(error_of([] { page_rule_from("pages"); }),
            "--pages: 'pages' is not known, expected quest, unique or deviations");
  for (const char* word : {"quest:", "quest:0", "quest:-8", "quest:12", "quest:128", "quest:8x"}) {
    EXPECT_THAT(error_of([&] { page_rule_from(word); }), testing::HasSubstr("expected pages of 1, 2, 4")) << word;
  }
}

class PageSteps : public testing::Test {
 protected:
  static Plan plan(int budget) { return Plan::sketch(6, 1, sketch_policy(budget)); }

  std::vector<float> logits(const Sequence& prefix, const Plan& plan) {
    Sequence sequence = prefix.fork();
    const Token token = 7;
    const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}, .decode = true, .plan = &plan};
    return copy(setup_.engine.step({&request, 1}));
  }

  SmallEngine setup_{"reference", GGML_TYPE_F32, plan(24), {.context = 512, .tokens = 4096, .chunk = 128}};
};

TEST_F(PageSteps, AsManyAsTheBytesAreEnoughFor) {
  const Engine& engine = setup_.engine;
  const KvShape kv = engine.model().hp.kv(1);
  for (const char* word : {"unique:8", "unique:16", "quest:64"}) {
    const PageRule rule = page_rule_from(word);
    for (const int budget : {64, 128, 200}) {
      for (const int context : {257, 320, 511}) {
        const Plan plan = this->plan(budget);
        const int64_t bytes = engine.decode_bytes(context, plan);
        const PageReads reads = pages_for_bytes(engine, plan, rule, context);
        ASSERT_GE(reads.pages, 2);
        EXPECT_TRUE(reads.pages == 2 || reads.bytes <= bytes) << word << " " << context;
        // Five layers scan: another page would be too much, unless there is none.
        const bool all = reads.pages * rule.positions >= context;
        EXPECT_TRUE(all || reads.bytes + 5 * kv.row_bytes() * rule.positions > bytes) << word << " " << context;
        EXPECT_EQ(page_decode_bytes(engine, plan, rule, context), reads.bytes);
      }
    }
    EXPECT_EQ(page_decode_bytes(engine, plan(64), rule, 64), engine.decode_bytes(64, plan(64)));
  }
}

TEST_F(PageSteps, AllPagesAreFullAttentionAndFewAreNot) {
  const Sequence prefix = setup_.prefilled(300, 1);
  const std::vector<float> full = logits(prefix, Plan::full(6)), sketch = logits(prefix, plan(64));
  const PageRule rule{PageScore::Deviation, 64};
  // What the sketches are larger than the summaries is more than the one row that the budget leaves out.
  ASSERT_EQ(pages_for_bytes(setup_.engine, plan(300), rule, 301).pages, 5);
  {
    const PageAttention pages(setup_.engine, rule);
    EXPECT_EQ(logits(prefix, plan(300)), full);
    EXPECT_EQ(logits(prefix, Plan::full(6)), full);
    const std::vector<float> few = logits(prefix, plan(64));
    EXPECT_NE(few, full);
    EXPECT_NE(few, sketch);
    EXPECT_EQ(logits(prefix, plan(64)), few);
  }
  EXPECT_EQ(logits(prefix, plan(64)), sketch);
}

TEST(PageBatches, DoNotDependOnTheCompany) {
  const auto plan = [](int budget) { return Plan::sketch(6, 1, sketch_policy(budget)); };
  SmallEngine cpu("cpu", GGML_TYPE_F32, plan(24), {.context = 512, .tokens = 4096, .chunk = 128, .sequences = 3});
  const Sequence same = cpu.prefilled(300, 1);
  const PageAttention pages(cpu.engine, {PageScore::Bounds, 8});
  const Plan plans[] = {Plan::full(6), plan(200), plan(64)};
  std::vector<Sequence> forks;
  for (int i = 0; i < 3; ++i) forks.push_back(same.fork());
  const Token token = 7;
  std::vector<Engine::Request> requests;
  for (size_t i = 0; i < 3; ++i) {
    requests.push_back({.sequence = &forks[i], .tokens = {&token, 1}, .decode = true, .plan = &plans[i]});
  }
  const std::vector<float> together = copy(cpu.engine.step(requests));
  const size_t vocab = together.size() / 3;
  for (size_t i = 0; i < 3; ++i) {
    Sequence alone = same.fork();
    const Engine::Request request{.sequence = &alone, .tokens = {&token, 1}, .decode = true, .plan = &plans[i]};
    const std::vector<float> logits = copy(cpu.engine.step({&request, 1}));
    EXPECT_TRUE(std::equal(logits.begin(), logits.end(), together.begin() + static_cast<ptrdiff_t>(i * vocab)));
  }
}

}  // namespace
}  // namespace tidal::test
