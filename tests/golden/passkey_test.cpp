// A pass key hidden in the KJV: what full attention finds, tidal attention has to find.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "golden/long_text.h"
#include "support/backends.h"

namespace tidal::golden {
namespace {

constexpr int kThreads = 2;
constexpr int kBudget = 256;

/// Where in a document of `length` tokens the key is, by parts of it. A processor takes minutes for what is left out
/// there; TIDAL_PLACES, for a study instead of a test, brings it back.
std::vector<double> depths(const std::string& backend) {
  if (backend == "cuda" || std::getenv("TIDAL_PLACES")) return {0.1, 0.3, 0.5, 0.7, 0.9};
  return {0.3};
}

/// Calls use(depth, key, document) for a document of `length` tokens with the key at each depth. The text before the
/// key is prefilled once for all of them.
template <typename Use>
void for_each_document(Engine& engine, const LongText& text, int length, const std::vector<double>& depths,
                       const Use& use) {
  Sequence before = engine.create();
  for (const double depth : depths) {
    const std::string key = pass_key(static_cast<int>(10 * depth) + length);
    const std::vector<Token> sentence = text.encode(pass_key_sentence(key));
    const size_t tokens = static_cast<size_t>(length) - sentence.size() - text.encode(pass_key_question()).size();
    const auto at = static_cast<size_t>(depth * static_cast<double>(tokens));
    const auto done = static_cast<size_t>(before.length());
    engine.prefill(before, text.text(done, at - done));
    Sequence document = before.fork();
    engine.prefill(document, sentence);
    engine.prefill(document, text.text(at, tokens - at));
    use(depth, key, document);
  }
}

EngineOptions options(int length) {
  // The shared text, the document, and the copy of its last block that an answer writes to.
  return {.context = length + 64, .tokens = 2 * int64_t{length} + 256, .sequences = 4};
}

/// By backend and length of the document.
class PassKey : public test::BackendTest<std::tuple<std::string, int>> {};

TEST_P(PassKey, TidalFindsWhatFullFinds) {
  const int length = std::get<1>(GetParam());
  const auto text = LongText::open("qwen2.5-coder-0.5b", kThreads, std::get<0>(GetParam()));
  if (!text) GTEST_SKIP() << "qwen2.5-coder-0.5b or the KJV is missing; run tools/setup.sh qwen2.5-coder-0.5b";
  const Hyperparameters& hp = text->model().hp;
  const Plan full = Plan::full(hp.layers);
  const Plan tidal = Plan::tidal(hp.layers, default_reselect(hp), default_policy(kBudget));
  Engine engine(text->backend(), text->model(), tidal, options(length));
  const std::vector<double> places = depths(std::get<0>(GetParam()));
  int by_full = 0;
  for_each_document(engine, *text, length, places, [&](double depth, const std::string& key, const Sequence& document) {
    engine.set_plan(full);
    const bool found = finds_pass_key(engine, *text, document, key, Question::Dense);
    by_full += found;
    engine.set_plan(tidal);
    const bool dense = finds_pass_key(engine, *text, document, key, Question::Dense);
    const bool sparse = finds_pass_key(engine, *text, document, key, Question::Sparse);
    std::printf("  %d tokens, key at %2.0f %%: full %s, tidal K=%d with a dense question %s, with a sparse one %s\n",
                length, 100 * depth, found ? "yes" : "no", kBudget, dense ? "yes" : "no", sparse ? "yes" : "no");
    std::fflush(stdout);
    EXPECT_TRUE(dense || !found) << "key at depth " << depth;
    EXPECT_TRUE(sparse || !found) << "key at depth " << depth;
  });
  const auto count = static_cast<int>(places.size());
  EXPECT_GE(by_full, count - count / 5) << "full attention itself should find the key";
}

INSTANTIATE_TEST_SUITE_P(Tokens, PassKey,
                         testing::Values(std::tuple("cpu", 8192), std::tuple("cuda", 4096), std::tuple("cuda", 16384)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace tidal::golden
