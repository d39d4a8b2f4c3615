// Exact mode: the text is full attention's, whatever is drafted.
#include "engine/exact.h"

#include <array>
#include <cmath>
#include <numeric>

#include "engine/greedy_chooser.h"
#include "unit/exact_texts.h"

namespace tidal {
namespace {

using test::exact_text;
using test::full_text;
using test::random_tokens;
using test::small_plan;
using test::SmallEngine;

class Exact : public test::BackendTest<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, Exact, testing::ValuesIn(test::kBackends), [](const auto& info) { return info.param; });

/// Draws by inverse transform; number i of a seed is the same for a draft and for the token itself.
class SeededChooser final : public TokenChooser {
 public:
  SeededChooser(uint64_t seed, float temperature, Token end = -1) : seed_(seed), temperature_(temperature), end_(end) {}

  int likely() const override { return 0; }
  Token choose(const Prospects& next) override { return draw(next.logits, count_++); }
  void begin_draft() override { drafting_ = count_; }
  Token draft(const Prospects& next) override { return draw(next.logits, drafting_++); }
  bool ends(Token token) const override { return token == end_; }

 private:
  Token draw(std::span<const float> logits, uint64_t number) const {
    uint64_t x = seed_ * 0x9e3779b97f4a7c15ull + number * 0xbf58476d1ce4e5b9ull;  // splitmix64
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    const double uniform = static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1p-53;
    double sum = 0, passed = 0;
    for (const float logit : logits) sum += std::exp(logit / temperature_);
    for (size_t i = 0; i < logits.size(); ++i) {
      passed += std::exp(logits[i] / temperature_);
      if (passed >= uniform * sum) return static_cast<Token>(i);
    }
    return static_cast<Token>(logits.size()) - 1;
  }

  uint64_t seed_;
  float temperature_;
  Token end_;
  uint64_t count_ = 0, drafting_ = 0;
};

TEST_P(Exact, GreedyTextIsThatOfFullAttention) {
  SmallEngine setup(GetParam(), GGML_TYPE_Q8_0);
  GreedyChooser chooser;
  for (const int prefix : {3, 20, 23, 24, 60, 130}) {  // below, at and above the budget
    const Sequence sequence = setup.prefilled(prefix, prefix);
    const std::vector<Token> expected = full_text(setup.engine, sequence.fork(), 5, 40, chooser);
    for (const int drafts : {1, 3, 7, 8, 20}) {
      for (const auto& [adapt, copy] : {std::pair{false, false}, {false, true}, {true, true}}) {
        ExactDecoder decoder(setup.engine, {.drafts = drafts, .adapt = adapt, .copy = copy});
        EXPECT_EQ(exact_text(decoder, sequence.fork(), 5, 40, chooser), expected)
            << prefix << " " << drafts << " " << adapt;
        const ExactStatistics& statistics = decoder.statistics();
        const DraftCounts all = statistics.all();
        EXPECT_LE(all.accepted, all.tried);
        EXPECT_LE(all.tried, all.drafted);
        if (!adapt) {
          EXPECT_GT(all.drafted, 0);
        }
        if (!copy) {
          EXPECT_EQ(statistics.copied.drafted, 0);
        }
      }
    }
  }
}

TEST_P(Exact, SampledTextIsThatOfFullAttentionForEverySeed) {
  SmallEngine setup(GetParam());
  const Sequence sequence = setup.prefilled(70, 3);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SeededChooser alone(seed, 1.0f, 7), exact(seed, 1.0f, 7);  // token 7 ends the text
    const std::vector<Token> expected = full_text(setup.engine, sequence.fork(), 5, 25, alone);
    ExactDecoder decoder(setup.engine, {.drafts = 4, .adapt = false, .copy = false});
    EXPECT_EQ(exact_text(decoder, sequence.fork(), 5, 25, exact), expected) << seed;
  }
}

TEST_P(Exact, SharedRandomNumbersMakeDraftsHold) {
  // Drafts of a plan that sees most of the context are accepted mostly, also at temperature 1, where two draws of their
  // own would hardly ever agree.
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(99));
  const Sequence sequence = setup.prefilled(100, 3);
  SeededChooser chooser(1, 1.0f);
  ExactDecoder decoder(setup.engine, {.drafts = 4, .adapt = false, .copy = false});
  exact_text(decoder, sequence.fork(), 5, 40, chooser);
  EXPECT_GT(decoder.statistics().sparse.acceptance(), 0.7);
}

// A text that repeats: what is copied is accepted, without a single sparse step.
TEST_P(Exact, CopiesWhatTheTextHasSaidBefore) {
  SmallEngine setup(GetParam());
  // Greedy text of a small random model falls into a loop, sooner or later: when depends on the last bits of logits.
  GreedyChooser chooser;
  int64_t accepted = 0;
  for (const uint64_t stream : {5, 6, 7, 8}) {
    const Sequence sequence = setup.prefilled(3, stream);
    const std::vector<Token> expected = full_text(setup.engine, sequence.fork(), 5, 200, chooser);
    ExactDecoder decoder(setup.engine, {.drafts = 7, .adapt = false});
    EXPECT_EQ(exact_text(decoder, sequence.fork(), 5, 200, chooser), expected) << stream;
    accepted += decoder.statistics().copied.accepted;
  }
  EXPECT_GT(accepted, 200);
}

TEST(Repetitions, TheLongestThenTheLatest) {
  const std::vector<Token> text = {1, 2, 3, 9, 7, 2, 3, 8, 2, 3, 4, 1, 2};
  const auto found = [&](Token last, int least) { return find_repetition(text, last, least); };
  EXPECT_EQ(found(3, 1).matched, 3);  // 1 2 3
  EXPECT_EQ(found(3, 1).behind, 3);
  EXPECT_EQ(found(3, 4).matched, 0);
  EXPECT_EQ(found(7, 1).matched, 1);
  EXPECT_EQ(found(6, 1).matched, 0);
  const std::vector<Token> twice = {5, 6, 1, 5, 6, 2, 5};
  EXPECT_EQ(find_repetition(twice, 6, 2).behind, 5);
  EXPECT_EQ(find_repetition({}, 6, 1).matched, 0);
  const std::vector<Token> same(40, 3);
  EXPECT_EQ(find_repetition(same, 3, 2).matched, 16);
  EXPECT_EQ(find_repetition(same, 3, 2).behind, 40);
}

TEST(Repetitions, CopiesRunIntoThemselves) {
  const auto copied = [](const std::vector<Token>& tokens, Token last, int count) {
    std::vector<Token> drafts;
    copy_repetition(tokens, last, find_repetition(tokens, last, 1), count, drafts);
    return drafts;
  };
  EXPECT_EQ(copied({1, 2, 3, 4, 1}, 2, 2), (std::vector<Token>{3, 4}));
  EXPECT_EQ(copied({1, 2, 3, 1}, 2, 7), (std::vector<Token>{3, 1, 2, 3, 1, 2, 3}));
  EXPECT_EQ(copied({9, 3}, 3, 3), (std::vector<Token>{3, 3, 3}));
}

TEST_P(Exact, StopsAtTheContext) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), {.context = 80, .chunk = 80});
  Sequence sequence = setup.prefilled(75, 3);
  GreedyChooser chooser;
  ExactDecoder decoder(setup.engine, {.adapt = false});
  Token token = 5;
  while (sequence.length() < 80) {
    const auto tokens = decoder.advance(sequence, token, 100, chooser);
    token = tokens.back();
  }
  EXPECT_NE(test::error_of([&] { decoder.advance(sequence, token, 100, chooser); }), "");
  EXPECT_EQ(sequence.length(), 80);
  EXPECT_EQ(sequence.clean(), 80);
}

TEST_P(Exact, PollutedSequencesAreRefused) {
  SmallEngine setup(GetParam());
  Sequence sequence = setup.prefilled(75, 3);
  setup.engine.decode(sequence, 1);
  GreedyChooser chooser;
  ExactDecoder decoder(setup.engine, {});
  EXPECT_EQ(test::error_of([&] { decoder.advance(sequence, 1, 5, chooser); }),
            "exact: 1 tokens of the sequence are polluted, expected none");
  EXPECT_EQ(test::error_of([&] { ExactDecoder(setup.engine, {.drafts = 0}); }),
            "exact: 0 drafts given, at least 1 is needed");
}

// The joint distribution of two tokens, the second of which hangs on whether the first draft was accepted, against full
// attention's own probabilities: chi-square over 20,000 draws.
TEST(ExactDistribution, IsThatOfFullAttention) {
  constexpr int kVocab = 8, kDraws = 20000;
  Hyperparameters hp = test::small_shape(5);
  hp.vocab = kVocab;
  const auto backend = make_backend("cpu", 1);
  const Model model = test::random_small_model(hp, GGML_TYPE_F32, *backend);
  const Plan plan = Plan::tidal(5, 4, default_policy(8));
  Engine engine(*backend, model, plan, {.context = 128, .tokens = 512, .chunk = 64, .sequences = 4});
  Sequence prefix = engine.create();
  std::vector<Token> tokens(40);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<Token>(i * i % kVocab);
  engine.prefill(prefix, tokens);
  const Token start = 3;

  const auto probabilities = [](std::span<const float> logits) {
    std::array<double, kVocab> p{};
    double sum = 0;
    for (int i = 0; i < kVocab; ++i) sum += p[i] = std::exp(logits[i]);
    for (double& value : p) value /= sum;
    return p;
  };
  std::array<double, kVocab * kVocab> expected{};
  for (Token first = 0; first < kVocab; ++first) {
    Sequence sequence = prefix.fork();
    Engine::Request request{.sequence = &sequence, .tokens = {&start, 1}};
    const double p = probabilities(engine.step({&request, 1}))[first];
    request.tokens = {&first, 1};
    const auto second = probabilities(engine.step({&request, 1}));
    for (int i = 0; i < kVocab; ++i) expected[first * kVocab + i] = p * second[i] * kDraws;
  }

  std::array<int, kVocab * kVocab> seen{};
  int64_t tried = 0, accepted = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    Sequence sequence = prefix.fork();
    SeededChooser chooser(draw + 1, 1.0f);
    ExactDecoder decoder(engine, {.drafts = 1, .adapt = false, .copy = false});
    std::vector<Token> text;
    Token token = start;
    while (text.size() < 2) {
      const auto more = decoder.advance(sequence, token, 2 - static_cast<int>(text.size()), chooser);
      text.insert(text.end(), more.begin(), more.end());
      token = text.back();
    }
    ++seen[text[0] * kVocab + text[1]];
    tried += decoder.statistics().sparse.tried;
    accepted += decoder.statistics().sparse.accepted;
  }
  double chi_square = 0, rest_expected = 0, rest_seen = 0;
  int cells = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] < 5) {  // too rare for the test; together they are one cell
      rest_expected += expected[i];
      rest_seen += seen[i];
      continue;
    }
    ++cells;
    chi_square += (seen[i] - expected[i]) * (seen[i] - expected[i]) / expected[i];
  }
  if (rest_expected >= 5) {
    ++cells;
    chi_square += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
  }
  ASSERT_GT(cells, 20);
  // Of cells - 1 degrees of freedom; by Wilson and Hilferty's cube-root normal approximation 4 standard deviations.
  const double df = cells - 1, bound = df * std::pow(1 - 2 / (9 * df) + 4 * std::sqrt(2 / (9 * df)), 3);
  EXPECT_LT(chi_square, bound) << cells << " cells";
  // Drafts must be rejected sometimes, or all this shows nothing.
  EXPECT_LT(accepted, tried);
  EXPECT_GT(accepted, tried / 4);
  RecordProperty("chi_square", std::to_string(chi_square));
}

}  // namespace
}  // namespace tidal
