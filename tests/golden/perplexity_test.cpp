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

/// Places in the text to average over; TIDAL_PLACES, up to 8, for a study instead of a test.
int places() {
  const char* words = std::getenv("TIDAL_PLACES");
  return words ? std::clamp(std::atoi(words), 1, 8) : 1;
}

/// Mean -log p over the steps behind `prefix`, whose last token's logits are `first`.
double surprise(Engine& engine, const Sequence& prefix, std::vector<float> first, std::span<const Token> tokens) {
  Sequence sequence = prefix.fork();
  double sum = 0;
  std::vector<float> logits = std::move(first);
  for (const Token token : tokens) {
    log_softmax(logits);
    sum -= logits[static_cast<size_t>(token)];
    const auto next = engine.decode(sequence, token);
    logits.assign(next.begin(), next.end());
  }
  return sum / static_cast<double>(tokens.size());
}

TEST(Perplexity, NearsFullAttentionsAsTheBudgetGrows) {
  const auto text = LongText::open("qwen2.5-coder-0.5b", kThreads);
  if (!text) GTEST_SKIP() << "qwen2.5-coder-0.5b or the KJV is missing; run tools/setup.sh qwen2.5-coder-0.5b";
  const Hyperparameters& hp = text->model().hp;
  constexpr int kReselect = 9;
  // 22.5 / 40.3 / 26.7 / 23.1: an independent study in PyTorch, averaged over eight places.
  const int budgets[] = {0, 64, 256, 1024};
  constexpr double kStudy[] = {22.5, 40.3, 26.7, 23.1};
  std::vector<double> sums(std::size(budgets), 0.0);
  const auto plan_of = [&](int budget) {
    return budget == 0 ? Plan::full(hp.layers) : Plan::tidal(hp.layers, kReselect, default_policy(budget));
  };
  Engine engine(text->backend(), text->model(), plan_of(0),
                {.context = kPrefix + kSteps, .tokens = kPrefix + 2 * (kSteps + 64), .sequences = 2});
  for (int place = 0; place < places(); ++place) {
    // The middle of the text first: its beginning is known by heart.
    const auto tokens = text->place(static_cast<size_t>(place + 4) % 8, kPrefix + kSteps);
    Sequence prefix = engine.create();
    const auto last = engine.prefill(prefix, tokens.first(kPrefix));
    const std::vector<float> first(last.begin(), last.end());
    for (size_t b = 0; b < std::size(budgets); ++b) {
      engine.set_plan(plan_of(budgets[b]));
      sums[b] += surprise(engine, prefix, first, tokens.subspan(kPrefix));
    }
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
