// A pass key hidden in the KJV: what full attention finds, tidal attention has to find.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "golden/long_text.h"
#include "support/backends.h"

namespace tidal::golden {
namespace {

constexpr int kThreads = 2;
constexpr int kBudget = 256;

constexpr double kDepths[] = {0.1, 0.3, 0.5, 0.7, 0.9};  // of the document

/// Calls use(depth, key, document) for a document of `length` tokens with the key at each depth. The text before the
/// key is prefilled once for all of them.
template <typename Use>
void for_each_document(Engine& engine, const LongText& text, int length, const Use& use) {
  Sequence before = engine.create();
  int number = length;
  for (const double depth : kDepths) {
    const std::string key = pass_key(number++);
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
  const std::string& backend = std::get<0>(GetParam());
  const int length = std::get<1>(GetParam());
  if (backend != "cuda" && !std::getenv("TIDAL_PLACES")) {
    GTEST_SKIP() << "a study of minutes on a processor, run with TIDAL_PLACES; Reselect has keys in 4K tokens";
  }
  const auto text = LongText::open("qwen2.5-coder-0.5b", kThreads, backend);
  if (!text) GTEST_SKIP() << "qwen2.5-coder-0.5b or the KJV is missing; run tools/setup.sh qwen2.5-coder-0.5b";
  const Hyperparameters& hp = text->model().hp;
  const Plan full = Plan::full(hp.layers);
  const Plan tidal = Plan::tidal(hp.layers, default_reselect(hp), default_policy(kBudget));
  Engine engine(text->backend(), text->model(), tidal, options(length));
  int by_full = 0;
  for_each_document(engine, *text, length, [&](double depth, const std::string& key, const Sequence& document) {
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
  EXPECT_GE(by_full, 4) << "full attention itself should find the key";
}

INSTANTIATE_TEST_SUITE_P(Tokens, PassKey,
                         testing::Combine(testing::Values("cpu", "cuda"), testing::Values(4096, 16384)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace tidal::golden
