// Prompts that share a beginning, scores of a text, recall: against running everything alone and by hand.
#include <gmock/gmock.h>

#include <cmath>

#include "engine/attention_probe.h"
#include "eval/next_token.h"
#include "eval/prompt_cache.h"
#include "eval/recall.h"
#include "eval/text_scores.h"
#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

const EngineOptions kOptions{.context = 512, .tokens = 2048, .chunk = 64, .sequences = 4};

std::vector<Token> joined(std::vector<Token> a, const std::vector<Token>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(PromptCache, IsBitIdenticalToPrefillingAlone) {
  SmallEngine setup("cpu", GGML_TYPE_Q8_0, Plan::full(6), kOptions);
  const std::vector<Token> text = random_tokens(300, 1);
  const std::vector<std::vector<Token>> prompts = {
      text,                                                              // 300 to compute
      joined({text.begin(), text.begin() + 200}, random_tokens(50, 2)),  // parts at 200: keeps 192
      joined({text.begin(), text.begin() + 128}, random_tokens(9, 3)),   // at a chunk's edge
      {text.begin(), text.begin() + 100},                                // shorter: the last chunk is another
      {text.begin(), text.begin() + 100},                                // the same
      text,                                                              // longer: keeps 64
      random_tokens(70, 4)};                                             // nothing in common
  const int expected[] = {300, 250 - 192, 137 - 128, 100 - 64, 0, 300 - 64, 70};
  PromptCache cache(setup.engine);
  for (size_t i = 0; i < prompts.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(cache.missing(prompts[i]), expected[i]);
    int computed = 0;
    const Sequence& sequence = cache.prefill(prompts[i], [&](int tokens) {
      EXPECT_GT(tokens, 0);
      EXPECT_LE(tokens, 64);
      computed += tokens;
    });
    EXPECT_EQ(computed, expected[i]);
    Sequence alone = setup.engine.create();
    setup.engine.prefill(alone, prompts[i]);
    EXPECT_TRUE(same_bits(setup.cache(sequence), setup.cache(alone)));
    EXPECT_EQ(sequence.clean(), sequence.length());
  }
  EXPECT_EQ(error_of([&] { cache.prefill({}); }), "prompt: it is empty, at least one token is needed");
}

TEST(PromptCache, GoesOnAfterAnInterruption) {
  SmallEngine setup("cpu", GGML_TYPE_Q8_0, Plan::full(6), kOptions);
  const std::vector<Token> text = random_tokens(300, 1);
  PromptCache cache(setup.engine);
  struct Enough {};
  int chunks = 0;
  EXPECT_THROW(cache.prefill(text,
                             [&](int) {
                               if (++chunks == 2) throw Enough();
                             }),
               Enough);
  EXPECT_EQ(cache.missing(text), 300 - 128);
  const std::vector<Bf16> resumed = setup.cache(cache.prefill(text));
  Sequence alone = setup.engine.create();
  setup.engine.prefill(alone, text);
  EXPECT_TRUE(same_bits(resumed, setup.cache(alone)));
}

/// Logits after every token but the last, by one plan.
std::vector<std::vector<float>> decoded(SmallEngine& setup, const Sequence& prefix, std::span<const Token> tokens,
                                        const Plan& plan) {
  setup.engine.set_plan(plan);
  Sequence sequence = prefix.fork();
  std::vector<std::vector<float>> logits;
  for (const Token token : tokens.first(tokens.size() - 1))
    logits.push_back(copy(setup.engine.decode(sequence, token)));
  setup.engine.set_plan(Plan::full(6));
  return logits;
}

TEST(TextScores, AreTheMeansOverTheSteps) {
  SmallEngine setup("cpu", GGML_TYPE_Q8_0, Plan::full(6), kOptions);
  constexpr int kSteps = 20;
  const Sequence prefix = setup.prefilled(200, 1);
  const std::vector<Token> tokens = random_tokens(kSteps + 1, 2);
  const std::vector<Plan> plans = {small_plan(), Plan::tidal(6, 3, paper_policy(40)), small_plan(300)};
  int calls = 0;
  const std::vector<TextScore> scores = score_text(setup.engine, prefix, tokens, plans, [&] { ++calls; });
  EXPECT_EQ(calls, kSteps * 3);
  ASSERT_EQ(scores.size(), 4u);
  const auto full = decoded(setup, prefix, tokens, Plan::full(6));
  for (size_t i = 0; i < scores.size(); ++i) {
    SCOPED_TRACE(i);
    const Plan plan = i == 0 ? Plan::full(6) : plans[i - 1];
    const auto logits = decoded(setup, prefix, tokens, plan);
    MeanError nll, kl, bytes;
    int same = 0;
    std::vector<MeanError> parts(kTextScoreParts);
    for (int step = 0; step < kSteps; ++step) {
      nll.add(negative_log_likelihood(logits[step], tokens[step + 1]));
      kl.add(kl_divergence(full[step], logits[step]));
      parts[step * kTextScoreParts / kSteps].add(kl_divergence(full[step], logits[step]));
      bytes.add(static_cast<double>(setup.engine.decode_bytes(201 + step, plan)));
      same += argmax(full[step]) == argmax(logits[step]);
    }
    EXPECT_DOUBLE_EQ(scores[i].nll, nll.mean());
    EXPECT_DOUBLE_EQ(scores[i].kl, kl.mean());
    EXPECT_DOUBLE_EQ(scores[i].kl_error, kl.error());
    EXPECT_DOUBLE_EQ(scores[i].same, same / double{kSteps});
    EXPECT_DOUBLE_EQ(scores[i].bytes, bytes.mean());
    ASSERT_EQ(scores[i].kl_parts.size(), parts.size());
    for (size_t p = 0; p < parts.size(); ++p) EXPECT_DOUBLE_EQ(scores[i].kl_parts[p], parts[p].mean());
  }
  EXPECT_GT(scores[1].kl, 0);
  EXPECT_EQ(scores[3].kl, 0) << "a budget above the context is full attention";
  EXPECT_EQ(scores[3].nll, scores[0].nll);
}

TEST(TextScores, OfFullAttentionAlone) {
  SmallEngine setup("cpu", GGML_TYPE_F32, Plan::full(6), kOptions);
  const Sequence prefix = setup.prefilled(100, 1);
  const std::vector<Token> tokens = random_tokens(3, 2);
  const std::vector<TextScore> scores = score_text(setup.engine, prefix, tokens, {});
  ASSERT_EQ(scores.size(), 1u);
  const auto logits = decoded(setup, prefix, tokens, Plan::full(6));
  EXPECT_DOUBLE_EQ(scores[0].nll,
                   (negative_log_likelihood(logits[0], tokens[1]) + negative_log_likelihood(logits[1], tokens[2])) / 2);
  EXPECT_EQ(scores[0].same, 1);
  EXPECT_EQ(error_of([&] { score_text(setup.engine, prefix, random_tokens(1, 2), {}); }),
            "evaluation: 1 tokens to score, at least 2 are needed");
}

TEST(Recall, IsWhatAProbeSeesOfEveryPlanAlone) {
  EngineOptions options = kOptions;
  options.sequences = 1;
  SmallEngine setup("cpu", GGML_TYPE_F32, Plan::full(6), options);
  const Sequence prefix = setup.prefilled(150, 1);
  const std::vector<Token> tokens = random_tokens(5, 2);
  const std::vector<Plan> plans = {small_plan(), Plan::tidal(6, 3, paper_policy(kBudget))};
  const auto recall = measure_recall(setup.engine, prefix, tokens, plans);
  ASSERT_EQ(recall.size(), 2u);
  for (size_t p = 0; p < plans.size(); ++p) {
    setup.engine.set_plan(plans[p]);
    Sequence sequence = prefix.fork();
    const AttentionProbe probe(setup.engine);
    std::vector<MeanError> mass(6);
    for (const Token token : tokens) {
      setup.engine.decode(sequence, token);
      for (size_t l = 0; l < 6; ++l) mass[l].add(probe.layers()[l].mean_mass());
    }
    for (size_t l = 0; l < 6; ++l) {
      EXPECT_EQ(recall[p][l].role, plans[p].roles[l]);
      EXPECT_DOUBLE_EQ(recall[p][l].mass.mean(), mass[l].mean()) << "layer " << l;
      EXPECT_EQ(recall[p][l].mass.count(), 5);
      EXPECT_EQ(mass[l].mean() < 1, plans[p].roles[l] == Role::Sparse);
    }
  }
  SmallEngine batches("cpu", GGML_TYPE_F32, Plan::full(6), kOptions);
  const Sequence other = batches.prefilled(150, 1);
  EXPECT_THAT(error_of([&] { measure_recall(batches.engine, other, tokens, plans); }), testing::HasSubstr("watched"));
}

}  // namespace
}  // namespace tidal::test
