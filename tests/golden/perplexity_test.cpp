// Perplexity of sparse decoding on real text: teacher-forced, one token a step after a dense prefix.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "golden/long_text.h"

namespace tidal::golden {
namespace {

constexpr int kThreads = 2;
constexpr int kPrefix = 4096, kSteps = 512;

/// Places in the text to average over, up to 8.
int places() {
  const char* words = std::getenv("TIDAL_PLACES");
  return words ? std::clamp(std::atoi(words), 1, 8) : 1;
}

/// -log p of `tokens`, summed, by each of `plans` behind `prefix`, whose last token's logits are `first`. All plans
/// decode in one batch, which reads the weights once for all of them.
std::vector<double> surprise(Engine& engine, const Sequence& prefix, const std::vector<float>& first,
                             std::span<const Token> tokens, std::span<const Plan> plans) {
  std::vector<Sequence> sequences;
  for (size_t i = 0; i < plans.size(); ++i) sequences.push_back(prefix.fork());
  std::vector<std::vector<float>> logits(plans.size(), first);
  std::vector<double> sums(plans.size());
  for (const Token token : tokens) {
    std::vector<Engine::Request> requests;
    for (size_t i = 0; i < plans.size(); ++i) {
      log_softmax(logits[i]);
      sums[i] -= logits[i][static_cast<size_t>(token)];
      requests.push_back({.sequence = &sequences[i], .tokens = {&token, 1}, .decode = true, .plan = &plans[i]});
    }
    const auto next = engine.step(requests);
    for (size_t i = 0; i < plans.size(); ++i) {
      const auto own = next.subspan(i * first.size(), first.size());
      logits[i].assign(own.begin(), own.end());
    }
  }
  return sums;
}

TEST(Perplexity, NearsFullAttentionsAsTheBudgetGrows) {
  if (!std::getenv("TIDAL_PLACES")) GTEST_SKIP() << "a study of minutes, run with TIDAL_PLACES=1 to 8";
  const auto text = LongText::open("qwen2.5-coder-0.5b", kThreads);
  if (!text) GTEST_SKIP() << "qwen2.5-coder-0.5b or the KJV is missing; run tools/setup.sh qwen2.5-coder-0.5b";
  const Hyperparameters& hp = text->model().hp;
  constexpr int kReselect = 9;
  // 22.5 / 40.3 / 26.7 / 23.1: an independent study in PyTorch, averaged over eight places.
  const int budgets[] = {0, 64, 256, 1024};
  constexpr double kStudy[] = {22.5, 40.3, 26.7, 23.1};
  std::vector<double> sums(std::size(budgets), 0.0);
  std::vector<Plan> plans;
  for (const int budget : budgets) {
    plans.push_back(budget == 0 ? Plan::full(hp.layers) : Plan::tidal(hp.layers, kReselect, default_policy(budget)));
  }
  constexpr int kCount = static_cast<int>(std::size(budgets));
  Engine engine(text->backend(), text->model(), plans[0],
                {.context = kPrefix + kSteps, .tokens = kPrefix + kCount * (kSteps + 64), .sequences = kCount});
  for (int place = 0; place < places(); ++place) {
    // The middle of the text first: its beginning is known by heart.
    const auto tokens = text->place(static_cast<size_t>(place + 4) % 8, kPrefix + kSteps);
    Sequence prefix = engine.create();
    const auto last = engine.prefill(prefix, tokens.first(kPrefix));
    const std::vector<float> first(last.begin(), last.end());
    const std::vector<double> found = surprise(engine, prefix, first, tokens.subspan(kPrefix), plans);
    for (size_t b = 0; b < found.size(); ++b) sums[b] += found[b] / kSteps;
  }
  std::vector<double> perplexity;
  for (const double sum : sums) perplexity.push_back(std::exp(sum / places()));
  std::printf("Perplexity of %d tokens after %d, %d of 8 places, reselect %d (the study's):\n", kSteps, kPrefix,
              places(), kReselect);
  for (size_t b = 0; b < std::size(budgets); ++b) {
    std::printf("  %-12s %6.2f (%.1f)\n", b == 0 ? "full" : ("K=" + std::to_string(budgets[b])).c_str(), perplexity[b],
                kStudy[b]);
  }
  // What sparse attention loses has to shrink with the budget, and to be no more than in the study, by the ratio to
  // full attention; one place scatters around the study's average of eight by about a tenth of the logarithm.
  for (size_t b = 1; b < std::size(budgets); ++b) {
    const double ours = std::log(perplexity[b] / perplexity[0]), study = std::log(kStudy[b] / kStudy[0]);
    EXPECT_LT(ours, study + 0.1) << "K=" << budgets[b];
    if (b > 1) {
      EXPECT_LT(perplexity[b], perplexity[b - 1]) << "K=" << budgets[b];
    }
  }
}

}  // namespace
}  // namespace tidal::golden
