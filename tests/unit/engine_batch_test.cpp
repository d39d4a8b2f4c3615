// What the engine promises about results: alone or in company, in one chunk or many, by any number of threads.
#include <gtest/gtest.h>

#include <cmath>

#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

using Parameters = std::tuple<std::string, ggml_type>;

class Results : public test::BackendTest<Parameters> {
 protected:
  const std::string& backend() const { return std::get<0>(GetParam()); }
  ggml_type type() const { return std::get<1>(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(All, Results,
                         testing::Combine(testing::ValuesIn(test::kBackends),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + ggml_type_name(std::get<1>(info.param));
                         });

/// A sequence of `before` tokens that then takes in `tokens`.
struct Turn {
  int before;
  int tokens;
  bool decode;
  bool all_logits;
};

TEST_P(Results, ABatchGivesEachWhatItGivesAlone) {
  // Deliberately not in the order of length; decoding below, at and above the budget.
  const std::vector<Turn> turns = {{100, 20, false, true}, {200, 1, true, false},  {0, 5, false, false},
                                   {10, 1, true, false},   {63, 30, false, false}, {kBudget, 1, true, false},
                                   {130, 8, false, true},  {300, 1, true, false}};
  SmallEngine setup(backend(), type());
  std::vector<std::vector<Token>> tokens;
  for (size_t i = 0; i < turns.size(); ++i) tokens.push_back(random_tokens(turns[i].tokens, 200 + i));
  const auto start = [&] {
    std::vector<Sequence> sequences;
    for (size_t i = 0; i < turns.size(); ++i) {
      sequences.push_back(turns[i].before ? setup.prefilled(turns[i].before, 100 + i) : setup.engine.create());
    }
    return sequences;
  };
  std::vector<std::vector<float>> logits;
  std::vector<std::vector<Bf16>> caches;
  {
    std::vector<Sequence> alone = start();
    for (size_t i = 0; i < turns.size(); ++i) {
      const Engine::Request request{&alone[i], tokens[i], turns[i].decode, turns[i].all_logits};
      logits.push_back(copy(setup.engine.step({&request, 1})));
      EXPECT_EQ(logits[i].size(), static_cast<size_t>(turns[i].all_logits ? turns[i].tokens : 1) * 97);
      caches.push_back(setup.cache(alone[i]));
    }
  }
  std::vector<Sequence> together = start();
  std::vector<Engine::Request> requests;
  for (size_t i = 0; i < turns.size(); ++i) {
    requests.push_back({&together[i], tokens[i], turns[i].decode, turns[i].all_logits});
  }
  const std::vector<float> all = copy(setup.engine.step(requests));
  size_t at = 0;
  for (size_t i = 0; i < turns.size(); ++i) {
    ASSERT_LE(at + logits[i].size(), all.size());
    EXPECT_EQ(std::vector<float>(all.begin() + at, all.begin() + at + logits[i].size()), logits[i]) << "sequence " << i;
    EXPECT_TRUE(same_bits(setup.cache(together[i]), caches[i])) << "cache of sequence " << i;
    at += logits[i].size();
  }
  EXPECT_EQ(at, all.size());
}

/// Root mean square difference over the root mean square of `b`.
double relative_difference(std::span<const float> a, std::span<const float> b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(difference / size);
}

std::vector<float> floats(std::span<const Bf16> values) {
  std::vector<float> result;
  for (const Bf16 value : values) result.push_back(to_float(value));
  return result;
}

TEST_P(Results, AnyChunkingGivesTheSameCache) {
  constexpr int kLength = 300;
  const std::vector<Token> tokens = random_tokens(kLength, 5);
  const auto run = [&](int chunk, std::vector<Bf16>& cache) {
    SmallEngine setup(backend(), type(), small_plan(), {.context = 512, .chunk = chunk});
    Sequence sequence = setup.engine.create();
    const std::vector<float> logits = copy(setup.engine.prefill(sequence, tokens));
    cache = setup.cache(sequence);
    return logits;
  };
  std::vector<Bf16> whole;
  const std::vector<float> whole_logits = run(512, whole);
  for (const int chunk : {1, 7, 8, 9, 64, 100, 299}) {
    std::vector<Bf16> cache;
    const std::vector<float> logits = run(chunk, cache);
    ASSERT_EQ(cache.size(), whole.size());
    if (backend() == "reference") {
      EXPECT_TRUE(same_bits(cache, whole)) << "chunks of " << chunk;
      EXPECT_EQ(logits, whole_logits);
      continue;
    }
    // Short chunks round activations to 8 bits with blocks of 32 (float32 weights: not at all), long ones round
    // activations and weights to bf16. Root mean square errors of one product, relative to its result:
    //   8 bits: a step is max / 127, max of 32 normal numbers about 2.1 deviations and at most 3.5: 3.5 / 127 / sqrt 12
    //     = 0.0080;
    //   bf16: at most 2^-8 / sqrt 3 for either factor: together 0.0032, in either run: 0.0045.
    // A key of layer l lies behind 4 products (qkv, project, gate and up, down) of every layer before and its own.
    // Their errors are independent, so squares add; attention and silu, of slope about 1, and the norms pass them on. 2
    // leaves room for that.
    const double product = std::hypot(type() == GGML_TYPE_F32 ? 0.0 : 0.0080, 0.0045);
    const size_t layer_size = whole.size() / 6;
    for (size_t l = 0; l < 6; ++l) {
      const auto own = floats(std::span(cache).subspan(l * layer_size, layer_size));
      const auto other = floats(std::span(whole).subspan(l * layer_size, layer_size));
      EXPECT_LE(relative_difference(own, other), 2 * product * std::sqrt(4.0 * l + 1))
          << "chunks of " << chunk << ", layer " << l;
    }
    EXPECT_LE(relative_difference(logits, whole_logits), 2 * product * std::sqrt(25.0)) << "chunks of " << chunk;
  }
}

// Checking a draft and decoding it token by token must not part: up to 8 tokens, and on the reference always.
TEST_P(Results, AShortChunkGivesWhatItsTokensGiveOneByOne) {
  SmallEngine setup(backend(), type(), Plan::full(6));
  const std::vector<Token> tokens = random_tokens(8, 6);
  Sequence chunked = setup.prefilled(120, 7), single = chunked.fork();
  const Engine::Request request{.sequence = &chunked, .tokens = tokens, .all_logits = true};
  const std::vector<float> all = copy(setup.engine.step({&request, 1}));
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(copy(setup.engine.decode(single, tokens[i])),
              std::vector<float>(all.begin() + i * 97, all.begin() + (i + 1) * 97));
  }
  EXPECT_TRUE(same_bits(setup.cache(single), setup.cache(chunked)));
}

TEST_P(Results, ThreadsChangeNothing) {
  const auto session = [&](int threads) {
    SmallEngine setup(backend(), type(), small_plan(), {.context = 512, .chunk = 128, .sequences = 2}, threads);
    Sequence sequence = setup.engine.create();
    std::vector<float> logits = copy(setup.engine.prefill(sequence, random_tokens(300, 8)));
    for (const Token token : random_tokens(5, 9)) {
      const auto step = setup.engine.decode(sequence, token);
      logits.insert(logits.end(), step.begin(), step.end());
    }
    return std::pair{logits, setup.cache(sequence)};
  };
  const auto [logits, cache] = session(1);
  for (const int threads : {2, 3, 5}) {
    const auto [other_logits, other_cache] = session(threads);
    EXPECT_EQ(other_logits, logits) << threads << " threads";
    EXPECT_TRUE(same_bits(other_cache, cache)) << threads << " threads";
  }
}

TEST_P(Results, UpToTheBudgetTidalIsFull) {
  constexpr int kPrompt = kBudget - 10;
  for (const Policy& policy :
       {default_policy(kBudget), paper_policy(kBudget), Policy{Scope::Kv, Pooling::Sum, kBudget, 0, kBudget}}) {
    SmallEngine tidal(backend(), type(), Plan::tidal(6, 4, policy)), full(backend(), type(), Plan::full(6));
    Sequence a = tidal.prefilled(kPrompt, 10), b = full.prefilled(kPrompt, 10);
    bool parted = false;
    for (const Token token : random_tokens(30, 11)) {
      const std::vector<float> sparse = copy(tidal.engine.decode(a, token));
      const std::vector<float> dense = copy(full.engine.decode(b, token));
      if (a.length() <= kBudget) {
        EXPECT_EQ(sparse, dense) << "context " << a.length();
        EXPECT_EQ(a.clean(), a.length());
        EXPECT_TRUE(same_bits(tidal.cache(a), full.cache(b)));
      } else {
        parted = parted || sparse != dense;
        EXPECT_EQ(a.clean(), kBudget);
      }
    }
    EXPECT_TRUE(parted) << "beyond the budget something must be left out";
    EXPECT_EQ(b.clean(), b.length());
  }
}

TEST_P(Results, AForkIsTheSequenceItCameFrom) {
  SmallEngine setup(backend(), type());
  Sequence a = setup.prefilled(100, 12);
  Sequence b = a.fork();
  const std::vector<Token> tokens = random_tokens(6, 13);
  // b goes another way first; a must not notice.
  for (const Token token : random_tokens(4, 14)) setup.engine.decode(b, token);
  b.truncate(100);
  Sequence fresh = setup.prefilled(100, 12);
  for (const Token token : tokens) {
    const std::vector<float> expected = copy(setup.engine.decode(fresh, token));
    EXPECT_EQ(copy(setup.engine.decode(a, token)), expected);
    EXPECT_EQ(copy(setup.engine.decode(b, token)), expected) << "truncated and decoded again";
  }
  EXPECT_TRUE(same_bits(setup.cache(a), setup.cache(fresh)));
  EXPECT_TRUE(same_bits(setup.cache(b), setup.cache(fresh)));
}

TEST_P(Results, SetPlanIsAsGood) {
  const Plan plans[] = {Plan::full(6), small_plan(40), Plan::tidal(6, 3, paper_policy(kBudget)), small_plan()};
  SmallEngine changing(backend(), type());
  for (const Plan& plan : plans) {
    changing.engine.set_plan(plan);
    EXPECT_EQ(changing.engine.plan(), plan);
    SmallEngine fixed(backend(), type(), plan);
    Sequence a = changing.prefilled(90, 15), b = fixed.prefilled(90, 15);
    for (const Token token : random_tokens(3, 16)) {
      EXPECT_EQ(copy(changing.engine.decode(a, token)), copy(fixed.engine.decode(b, token)));
    }
  }
}

}  // namespace
}  // namespace tidal::test
