// Where SmolLM2's middle Select layer should be: the measurement behind the table of default_reselect().
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "golden/long_text.h"

namespace tidal::golden {
namespace {

constexpr int kThreads = 2;
constexpr int kPrefix = 4096, kBudget = 256;

/// Mean KL divergence of the plan's next-token distributions from `expected`, teacher-forced behind `prefix`.
double divergence(Engine& engine, const Sequence& prefix, std::span<const Token> tokens,
                  const std::vector<std::vector<float>>& expected) {
  Sequence sequence = prefix.fork();
  double sum = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto next = engine.decode(sequence, tokens[i]);
    std::vector<float> logits(next.begin(), next.end());
    log_softmax(logits);
    for (size_t v = 0; v < logits.size(); ++v) {
      const double p = std::exp(static_cast<double>(expected[i][v]));
      sum += p * (static_cast<double>(expected[i][v]) - logits[v]);
    }
  }
  return sum / static_cast<double>(tokens.size());
}

TEST(Reselect, SmolLM2sDefaultIsAmongTheBestLayers) {
  const auto text = LongText::open("smollm2-135m", kThreads);
  if (!text) GTEST_SKIP() << "smollm2-135m or the KJV is missing; run tools/setup.sh smollm2-135m";
  const Hyperparameters& hp = text->model().hp;
  const bool study = std::getenv("TIDAL_PLACES") != nullptr;  // every layer, more places
  const int places = study ? 4 : 1, steps = study ? 256 : 96;
  Engine engine(text->backend(), text->model(), Plan::full(hp.layers),
                {.context = kPrefix + 512, .tokens = 2 * kPrefix + 1024, .sequences = 4});
  std::map<int, double> kl;
  std::map<int, int> found;
  for (int place = 0; place < places; ++place) {
    const auto tokens = text->place(static_cast<size_t>(2 * place), static_cast<size_t>(kPrefix + steps));
    Sequence prefix = engine.create();
    engine.prefill(prefix, tokens.first(kPrefix));
    engine.set_plan(Plan::full(hp.layers));
    std::vector<std::vector<float>> expected;
    Sequence sequence = prefix.fork();
    for (const Token token : tokens.subspan(kPrefix)) {
      const auto next = engine.decode(sequence, token);
      log_softmax(expected.emplace_back(next.begin(), next.end()));
    }
    std::vector<int> layers = {default_reselect(hp)};
    for (int reselect = 4; reselect < hp.layers - 1; reselect += study ? 1 : 5) {
      if (reselect != layers[0]) layers.push_back(reselect);
    }
    for (const int reselect : layers) {
      engine.set_plan(Plan::tidal(hp.layers, reselect, default_policy(kBudget)));
      kl[reselect] += divergence(engine, prefix, tokens.subspan(kPrefix), expected) / places;
    }
  }
  // The pass key in 4096 tokens, in their middle (at five depths in a study), the question decoded sparsely.
  int by_full = 0, keys = 0;
  for (int i = study ? 0 : 2; i < (study ? 5 : 3); ++i) {
    ++keys;
    const std::string key = pass_key(i);
    const std::vector<Token> sentence = text->encode(pass_key_sentence(key));
    const size_t length = kPrefix - 64, at = length * static_cast<size_t>(2 * i + 1) / 10;
    Sequence document = engine.create();
    engine.prefill(document, text->text(0, at));
    engine.prefill(document, sentence);
    engine.prefill(document, text->text(at, length - at));
    engine.set_plan(Plan::full(hp.layers));
    by_full += finds_pass_key(engine, *text, document, key, Question::Sparse);
    for (auto& [reselect, divergence] : kl) {
      engine.set_plan(Plan::tidal(hp.layers, reselect, default_policy(kBudget)));
      found[reselect] += finds_pass_key(engine, *text, document, key, Question::Sparse);
    }
  }
  std::printf("SmolLM2-135M, K=%d, %d steps after %d tokens, %d places; full attention finds %d of %d keys:\n", kBudget,
              steps, kPrefix, places, by_full, keys);
  for (const auto& [reselect, value] : kl) {
    std::printf("  reselect %2d: KL %.4f, pass key %d of %d\n", reselect, value, found[reselect], keys);
  }
  // On four places it was the best of all layers (docs/accuracy.md); a single place may favour a neighbour a little.
  double best = kl.begin()->second;
  for (const auto& [reselect, value] : kl) best = std::min(best, value);
  EXPECT_LE(kl[default_reselect(hp)], 1.2 * best);
  EXPECT_GE(found[default_reselect(hp)], by_full);
}

}  // namespace
}  // namespace tidal::golden
