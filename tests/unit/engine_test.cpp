// The engine's bookkeeping and every request that it refuses.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

class EngineTest : public test::BackendTest<std::string> {
 protected:
  /// The error of a step; afterwards nothing may have changed.
  static std::string step_error(Engine& engine, std::vector<Engine::Request> requests) {
    std::vector<int> lengths;
    for (const auto& request : requests) lengths.push_back(request.sequence ? request.sequence->length() : 0);
    const int free = engine.pool().free_blocks();
    const std::string message = error_of([&] { engine.step(requests); });
    EXPECT_EQ(engine.pool().free_blocks(), free);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(requests[i].sequence ? requests[i].sequence->length() : 0, lengths[i]);
    }
    return message;
  }
};

INSTANTIATE_TEST_SUITE_P(All, EngineTest, testing::ValuesIn(test::kBackends),
                         [](const auto& info) { return info.param; });

TEST_P(EngineTest, RefusesWrongRequests) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(),
                    {.context = 100, .tokens = 300, .chunk = 20, .sequences = 2});
  SmallEngine other(GetParam(), GGML_TYPE_F32, small_plan(), {.context = 100});
  Sequence a = setup.prefilled(90, 1), b = setup.engine.create(), c = setup.engine.create();
  Sequence foreign = other.engine.create();
  const std::vector<Token> one = {1}, two = {1, 2}, eleven(11, 1), twenty(20, 1), twenty_one(21, 1);
  const std::vector<Token> none, negative = {1, -1}, large = {97};
  const auto error = [&](std::vector<Engine::Request> requests) {
    return step_error(setup.engine, std::move(requests));
  };
  EXPECT_EQ(error({}), "engine: a step takes 1 to 2 sequences, got 0");
  EXPECT_EQ(error({{&a, one}, {&b, one}, {&c, one}}), "engine: a step takes 1 to 2 sequences, got 3");
  EXPECT_EQ(error({{&b, none}}), "engine: a step needs at least one token for every sequence");
  EXPECT_EQ(error({{&b, two, true}}), "engine: decoding takes one token a step");
  EXPECT_EQ(error({{&b, negative}}), "engine: token -1 is outside the vocabulary of 97");
  EXPECT_EQ(error({{&a, one}, {&b, large}}), "engine: token 97 is outside the vocabulary of 97");
  EXPECT_EQ(error({{&a, eleven}}), "engine: 101 tokens do not fit in a context of 100");
  EXPECT_EQ(error({{&b, twenty_one}}), "engine: 21 tokens in one chunk, at most 20");
  EXPECT_EQ(error({{&b, twenty}, {&a, two}}), "engine: 22 tokens in one step, at most 21");
  EXPECT_EQ(error({{&a, one}, {&a, two}}), "engine: requests 0 and 1 are of the same sequence, a step takes each once");
  EXPECT_EQ(error({{&b, one}, {nullptr, one}}), "engine: request 1 of the step names no sequence");
  EXPECT_EQ(error({{&foreign, one}}), "engine: the sequence of request 0 is another engine's");
  // And still works.
  EXPECT_EQ(setup.engine.decode(a, 1).size(), 97u);
}

TEST_P(EngineTest, RefusesWrongOptionsAndPlans) {
  const auto error = [&](const EngineOptions& options, const Plan& plan = small_plan()) {
    return error_of([&] {
      const auto backend = make_backend(GetParam(), 1);
      const Model model = random_small_model(small_shape(), GGML_TYPE_F32, *backend);
      Engine(*backend, model, plan, options);
    });
  };
  const std::string least = "engine: context, chunk and sequences must be at least 1, got ";
  EXPECT_EQ(error({.context = 0, .chunk = 512}), least + "0, 512 and 1");
  EXPECT_EQ(error({.chunk = 0}), least + "4096, 0 and 1");
  EXPECT_EQ(error({.chunk = 512, .sequences = -1}), least + "4096, 512 and -1");
  EXPECT_EQ(error({}, Plan::full(7)), "plan: it has 7 layers, but the model has 6");
  EXPECT_TRUE(error_of([&] { make_backend("gpu", 1); }).starts_with("backend: 'gpu' is not known, expected auto, cpu"));
  EXPECT_EQ(error_of([&] { make_backend("cpu", 0); }), "threads: 0 given, at least 1 is needed");

  SmallEngine setup(GetParam());
  EXPECT_EQ(error_of([&] { setup.engine.set_plan(Plan::full(5)); }), "plan: it has 5 layers, but the model has 6");
  EXPECT_EQ(setup.engine.plan(), small_plan());
}

TEST_P(EngineTest, Prefill) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), {.context = 100, .chunk = 30});
  Sequence sequence = setup.engine.create();
  EXPECT_EQ(error_of([&] { setup.engine.prefill(sequence, {}); }), "prompt: it is empty, at least one token is needed");
  EXPECT_EQ(error_of([&] { setup.engine.prefill(sequence, random_tokens(101, 1)); }),
            "prompt: 101 tokens do not fit in a context of 100 that already holds 0");
  EXPECT_EQ(sequence.length(), 0);
  std::vector<int> seen;
  const auto logits = setup.engine.prefill(sequence, random_tokens(70, 1), [&](int done) {
    seen.push_back(done);
    return true;
  });
  EXPECT_EQ(logits.size(), 97u);
  EXPECT_EQ(seen, (std::vector<int>{30, 60, 70}));
  EXPECT_EQ(error_of([&] { setup.engine.prefill(sequence, random_tokens(31, 1)); }),
            "prompt: 31 tokens do not fit in a context of 100 that already holds 70");
  setup.engine.prefill(sequence, random_tokens(30, 1), [](int) { return false; });
  EXPECT_EQ(sequence.length(), 100) << "one chunk, after which nothing is left to stop";
  sequence.truncate(10);
  setup.engine.prefill(sequence, random_tokens(90, 1), [](int done) { return done < 60; });
  EXPECT_EQ(sequence.length(), 70) << "stopped after the second chunk";
  EXPECT_EQ(sequence.clean(), 70);
}

TEST_P(EngineTest, TheLastTokenOfTheContextIsUsable) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), {.context = 65, .chunk = 65});
  Sequence sequence = setup.prefilled(64, 1);
  EXPECT_EQ(setup.engine.decode(sequence, 3).size(), 97u);
  EXPECT_EQ(error_of([&] { setup.engine.decode(sequence, 3); }), "engine: 66 tokens do not fit in a context of 65");
  EXPECT_EQ(sequence.length(), 65);
}

TEST_P(EngineTest, AnExhaustedPoolChangesNothing) {
  // 4 + 1 blocks: two sequences of 128 tokens leave one.
  const EngineOptions options{.context = 256, .tokens = 256, .chunk = 256, .sequences = 2};
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), options), roomy(GetParam());
  Sequence a = setup.prefilled(128, 1), b = setup.prefilled(128, 2);
  const std::vector<Token> one = {5}, many(100, 5);
  EXPECT_EQ(step_error(setup.engine, {{&a, one, true}, {&b, one, true}}),
            "KV cache: 1 more tokens need 1 blocks of 64 tokens, but only 0 of 5 are free");
  EXPECT_EQ(step_error(setup.engine, {{&a, many}}),
            "KV cache: 100 more tokens need 2 blocks of 64 tokens, but only 1 of 5 are free");
  Sequence same_a = roomy.prefilled(128, 1);
  EXPECT_EQ(copy(setup.engine.decode(a, 5)), copy(roomy.engine.decode(same_a, 5)));
  EXPECT_THROW(setup.engine.decode(b, 5), Error);
  a.truncate(128);
  Sequence same_b = roomy.prefilled(128, 2);
  EXPECT_EQ(copy(setup.engine.decode(b, 5)), copy(roomy.engine.decode(same_b, 5)));
}

TEST_P(EngineTest, AllBlocksComeBack) {
  SmallEngine setup(GetParam());
  const int all = setup.engine.pool().free_blocks();
  {
    Sequence a = setup.prefilled(100, 1), b = a.fork(), c = b.fork();
    for (Token token = 0; token < 40; ++token) {
      for (Sequence* sequence : {&a, &b, &c}) setup.engine.decode(*sequence, token);
    }
    b.truncate(3);
    EXPECT_LT(setup.engine.pool().free_blocks(), all);
  }
  EXPECT_EQ(setup.engine.pool().free_blocks(), all);
  for (BlockId block = 0; block < setup.engine.pool().blocks(); ++block) {
    EXPECT_EQ(setup.engine.pool().references(block), 0);
  }
}

TEST_P(EngineTest, CleanEndsWhereSparseBegins) {
  SmallEngine setup(GetParam());
  Sequence sequence = setup.prefilled(kBudget - 1, 1);
  setup.engine.decode(sequence, 1);
  EXPECT_EQ(sequence.clean(), kBudget) << "a context of the budget is still dense";
  setup.engine.decode(sequence, 1);
  EXPECT_EQ(sequence.clean(), kBudget);
  setup.engine.prefill(sequence, random_tokens(10, 2));
  EXPECT_EQ(sequence.clean(), kBudget) << "a dense chunk over polluted positions is polluted";
  sequence.truncate(kBudget);
  setup.engine.prefill(sequence, random_tokens(10, 2));
  EXPECT_EQ(sequence.clean(), kBudget + 10);
  setup.engine.set_plan(Plan::full(6));
  setup.engine.decode(sequence, 1);
  EXPECT_EQ(sequence.clean(), kBudget + 11);
}

TEST_P(EngineTest, BudgetAboveTheContextIsFull) {
  SmallEngine huge(GetParam(), GGML_TYPE_F32, small_plan(2000000000)), full(GetParam(), GGML_TYPE_F32, Plan::full(6));
  Sequence a = huge.prefilled(200, 1), b = full.prefilled(200, 1);
  EXPECT_EQ(copy(huge.engine.decode(a, 1)), copy(full.engine.decode(b, 1)));
}

TEST_P(EngineTest, FillRandom) {
  SmallEngine setup(GetParam());
  Sequence a = setup.engine.create(), b = setup.engine.create();
  setup.engine.fill_random(a, 200, 3);
  setup.engine.fill_random(b, 200, 3);
  EXPECT_EQ(a.length(), 200);
  EXPECT_TRUE(same_bits(setup.cache(a), setup.cache(b)));
  for (const Bf16 value : setup.cache(a)) ASSERT_LE(std::abs(to_float(value)), 1.0f);
  EXPECT_EQ(copy(setup.engine.decode(a, 1)), copy(setup.engine.decode(b, 1)));
  EXPECT_EQ(error_of([&] { setup.engine.fill_random(a, 312, 3); }),
            "engine: cannot fill 312 positions in a context of 512 that holds 201");
  EXPECT_EQ(error_of([&] { setup.engine.fill_random(a, -1, 3); }),
            "engine: cannot fill -1 positions in a context of 512 that holds 201");
}

TEST_P(EngineTest, DecodeBytes) {
  SmallEngine setup(GetParam());
  const Hyperparameters& hp = setup.model.hp;
  const int64_t weights = setup.model.decode_weight_bytes(), row = 2 * 2 * hp.head_dim;
  // Dense 0 and 1, Select 2 and 4, Sparse 3 and 5.
  EXPECT_EQ(setup.engine.decode_bytes(kBudget), weights + 6 * kBudget * hp.kv_heads * row);
  EXPECT_EQ(setup.engine.decode_bytes(100), weights + (4 * 100 + 2 * kBudget) * hp.kv_heads * row);
  setup.engine.set_plan(Plan::tidal(6, 4, paper_policy(kBudget)));
  EXPECT_EQ(setup.engine.decode_bytes(100), weights + (4 * 100 * hp.kv_heads + 2 * kBudget * hp.heads) * row);
}

}  // namespace
}  // namespace tidal::test
