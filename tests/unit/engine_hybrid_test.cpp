// Hybrids on the engine: recurrent layers go forward only, and all that a sequence can do gives what a fresh run gives.
#include <cmath>

#include "engine/exact.h"
#include "engine/greedy_chooser.h"
#include "model/load.h"
#include "unit/engine_setup.h"

namespace tidal {
namespace {

using test::copy;
using test::random_tokens;
using test::same_bits;
using test::small_hybrid;
using test::SmallEngine;

constexpr int kChunk = 64;

class Hybrid : public test::BackendTest<std::string> {
 protected:
  static Plan sparse_plan() { return Plan::tidal(small_hybrid(), 6, default_policy(test::kBudget)); }
  static EngineOptions options(int sequences = 8) {
    return {.context = 1024, .tokens = 8192, .chunk = kChunk, .sequences = sequences};
  }

  /// Without a device the test is skipped, but not before it is made.
  static std::string there() { return GetParam() == "cuda" && !has_cuda_device() ? "reference" : GetParam(); }

  SmallEngine setup{there(), small_hybrid(), GGML_TYPE_F32, sparse_plan(), options()};
  const std::vector<Token> text = random_tokens(400, 3);

  std::span<const Token> some(int first, int count) const {
    return std::span(text).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  }
  Sequence fresh(int count) {
    Sequence sequence = setup.engine.create();
    setup.engine.prefill(sequence, some(0, count));
    return sequence;
  }
  /// One dense row, or one by the plan.
  std::vector<float> step(Sequence& sequence, Token token, bool decode = false) {
    const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}, .decode = decode};
    return copy(setup.engine.step({&request, 1}));
  }
  void decode(Sequence& sequence, int first, int count, bool sparse) {
    for (const Token token : some(first, count)) step(sequence, token, sparse);
  }
  /// Where the states that wait for somebody are.
  static std::vector<int> saved(const Sequence& sequence) {
    std::vector<int> positions;
    for (const auto& [position, state] : sequence.states().saved()) positions.push_back(position);
    return positions;
  }
};

INSTANTIATE_TEST_SUITE_P(All, Hybrid, testing::ValuesIn(test::kBackends), [](const auto& info) { return info.param; });

TEST_P(Hybrid, OnlyLayersThatAttendHaveKeysAndValues) {
  const Hyperparameters& hp = setup.model.hp;
  EXPECT_EQ(hp.kv_bytes_per_token(), 6 * 2 * 2 * hp.kv_width());
  EXPECT_EQ(setup.engine.pool().bytes(), hp.kv_bytes_per_token() * kBlockTokens * setup.engine.pool().blocks());
  // q, k and v of the convolution's last three rows, and four matrices of 16 by 16, in two layers.
  EXPECT_EQ(hp.state_bytes(), 2 * 4 * (3 * 128 + 4 * 16 * 16));
  // 256 Ki positions of a published shape.
  EXPECT_EQ(known_shape("qwen3.5-35b-a3b").kv_bytes_per_token() * 262144, int64_t{5} << 30);
  const EngineMemory memory = engine_memory(*setup.backend, hp, Plan::full(8), options(2));
  EXPECT_EQ(memory.states, 2 * (1 + SequenceStates::kMostSaved) * hp.state_bytes());
}

TEST_P(Hybrid, AStateGoesOnFromChunkToChunk) {
  // Of the reference a row gets what it gets in any chunk; on others as long as all chunks are short.
  for (const int rows : {1, 3, 8}) {
    Sequence whole = setup.engine.create(), cut = setup.engine.create();
    for (int i = 0; i < 96; i += 8) setup.engine.prefill(whole, some(i, 8));
    for (int i = 0; i < 96; i += rows) setup.engine.prefill(cut, some(i, std::min(rows, 96 - i)));
    EXPECT_TRUE(same_bits(setup.cache(whole), setup.cache(cut))) << rows;
    EXPECT_EQ(step(whole, 5), step(cut, 5)) << rows;
  }
}

TEST_P(Hybrid, SequencesOfABatchDoNotMeet) {
  Sequence a = fresh(70), b = fresh(20), c = setup.engine.create();
  Sequence a_alone = fresh(70), b_alone = fresh(20), c_alone = setup.engine.create();
  const std::array<Engine::Request, 3> requests = {
      Engine::Request{.sequence = &a, .tokens = some(70, 1), .decode = true},
      Engine::Request{.sequence = &c, .tokens = some(100, 30)}, Engine::Request{.sequence = &b, .tokens = some(20, 3)}};
  const std::vector<float> together = copy(setup.engine.step(requests));
  std::vector<float> alone;
  for (const auto& [sequence, request] :
       {std::pair{&a_alone, requests[0]}, {&c_alone, requests[1]}, {&b_alone, requests[2]}}) {
    Engine::Request own = request;
    own.sequence = sequence;
    const auto logits = setup.engine.step({&own, 1});
    alone.insert(alone.end(), logits.begin(), logits.end());
  }
  EXPECT_EQ(together, alone);
}

TEST_P(Hybrid, ForksGoTheirOwnWays) {
  Sequence sequence = fresh(100);
  Sequence fork = sequence.fork(), other = sequence.fork();
  const std::vector<float> expected = step(sequence, 5);
  step(other, 6);
  EXPECT_EQ(step(fork, 5), expected);
  EXPECT_NE(step(other, 5), expected);
  const int free = setup.engine.pool().states().free_states();
  {
    const Sequence more = fork.fork();
    EXPECT_EQ(setup.engine.pool().states().free_states(), free) << "a fork takes a state when it goes on";
  }
  EXPECT_EQ(setup.engine.pool().states().free_states(), free);
}

TEST_P(Hybrid, WhatIsTruncatedIsAsIfItHadNeverBeen) {
  // In a chunk, at its end, in the first one, among decoded tokens, at the very beginning.
  for (const int length : {150, 128, 64, 20, 3, 215, 0}) {
    Sequence sequence = fresh(200);
    decode(sequence, 200, 30, false);
    sequence.truncate(length);
    Sequence expected = setup.engine.create();
    if (length > 0) setup.engine.prefill(expected, some(0, std::min(length, 200)));
    if (length > 200) decode(expected, 200, length - 200, false);
    EXPECT_EQ(step(sequence, 7), step(expected, 7)) << length;
    EXPECT_TRUE(same_bits(setup.cache(sequence), setup.cache(expected))) << length;
    EXPECT_EQ(sequence.clean(), length + 1);
  }
}

TEST_P(Hybrid, ATruncatedForkLeavesTheOther) {
  Sequence sequence = fresh(200);
  Sequence fork = sequence.fork();
  fork.truncate(100);
  const std::vector<Bf16> before = setup.cache(sequence);
  step(fork, 7);
  EXPECT_TRUE(same_bits(setup.cache(sequence), before));
  Sequence expected = fresh(200);
  EXPECT_EQ(step(sequence, 7), step(expected, 7));
}

TEST_P(Hybrid, SparseTokensPolluteTheStateAndCorrectingCleansIt) {
  Sequence sparse = fresh(200), dense = fresh(200), expected = fresh(200);
  decode(sparse, 200, 20, true);
  decode(dense, 200, 20, false);
  EXPECT_EQ(sparse.clean(), 200);
  EXPECT_NE(step(sparse, 7, true), step(dense, 7)) << "nothing is polluted, so this tests nothing";
  sparse.truncate(220);
  setup.engine.correct(sparse);
  EXPECT_EQ(sparse.clean(), 220);
  setup.engine.prefill(expected, some(200, 20));  // the same chunk at the same position
  EXPECT_TRUE(same_bits(setup.cache(sparse), setup.cache(expected)));
  EXPECT_EQ(step(sparse, 7), step(expected, 7));
}

TEST_P(Hybrid, TruncatedAmongSparseTokensTheRestIsCorrected) {
  Sequence sparse = fresh(200), expected = fresh(200);
  decode(sparse, 200, 20, true);
  sparse.truncate(212);
  EXPECT_EQ(sparse.clean(), 200);
  setup.engine.prefill(expected, some(200, 12));
  EXPECT_EQ(step(sparse, 7), step(expected, 7));
  EXPECT_EQ(sparse.clean(), 213);
}

TEST_P(Hybrid, CorrectionTogetherWithTheNextTokens) {
  Sequence sparse = fresh(200), expected = fresh(200);
  decode(sparse, 200, 5, true);
  const Engine::Request request{.sequence = &sparse, .tokens = some(205, 3), .all_logits = true, .correct = 5};
  const std::vector<float> got = copy(setup.engine.step({&request, 1}));
  const Engine::Request whole{.sequence = &expected, .tokens = some(200, 8), .all_logits = true};
  EXPECT_EQ(got, copy(setup.engine.step({&whole, 1})));
  EXPECT_EQ(sparse.clean(), 208);
}

TEST_P(Hybrid, PlansThatCorrectDoSo) {
  Plan plan = sparse_plan();
  plan.correct = 6;
  setup.engine.set_plan(plan);
  Sequence sequence = fresh(200), expected = fresh(200);
  decode(sequence, 200, 7, true);  // the seventh finds six polluted
  EXPECT_EQ(sequence.clean(), 206);
  setup.engine.prefill(expected, some(200, 6));
  EXPECT_EQ(step(sequence, 9, true).size(), static_cast<size_t>(setup.model.hp.vocab));
  expected.truncate(206);
  decode(expected, 206, 1, true);
  sequence.truncate(206);
  EXPECT_EQ(step(sequence, 9), [&] {
    expected.truncate(206);
    return step(expected, 9);
  }());
}

TEST_P(Hybrid, ExactTextIsThatOfFullAttention) {
  GreedyChooser chooser;
  for (const int prefix : {3, 24, 100, 128}) {
    const Sequence sequence = fresh(prefix);
    Sequence full = sequence.fork();
    std::vector<Token> expected;
    Token token = 5;
    while (expected.size() < 40) {
      const Engine::Request request{.sequence = &full, .tokens = {&token, 1}};
      token = chooser.choose(tidal::step(setup.engine, request, chooser));
      expected.push_back(token);
    }
    for (const int drafts : {1, 4, 7, 12}) {
      for (const bool copied : {false, true}) {
        ExactDecoder decoder(setup.engine, {.drafts = drafts, .adapt = false, .copy = copied});
        Sequence exact = sequence.fork();
        std::vector<Token> got;
        while (got.size() < expected.size()) {
          const auto more = decoder.advance(exact, got.empty() ? 5 : got.back(),
                                            static_cast<int>(expected.size() - got.size()), chooser);
          got.insert(got.end(), more.begin(), more.end());
          EXPECT_EQ(exact.clean(), exact.length());
        }
        EXPECT_EQ(got, expected) << prefix << " " << drafts << " " << copied;
        // With the device's roundings this text's drafts may all hold.
        if (GetParam() == "cuda") continue;
        EXPECT_LT(decoder.statistics().all().accepted, decoder.statistics().all().drafted) << "none was taken back";
      }
    }
  }
}

TEST_P(Hybrid, SavedStatesAreFewAndFarBetween) {
  Sequence sequence = fresh(64 * 6);
  std::vector<int> positions = saved(sequence);
  EXPECT_EQ(positions.size(), static_cast<size_t>(SequenceStates::kMostSaved));
  EXPECT_EQ(positions.back(), 64 * 6);
  EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
  // The last ones are the nearest to each other.
  EXPECT_GE(positions[1] - positions[0], positions[3] - positions[2]);
  sequence.truncate(positions[1] + 1);
  positions.resize(2);
  EXPECT_EQ(saved(sequence), positions);
}

TEST_P(Hybrid, RoundsLeaveTheStatesAtBlocks) {
  const std::vector<int> blocks = {64, 128, 192};
  Sequence sequence = fresh(200);
  ASSERT_EQ(saved(sequence), blocks);
  const Token token = 5;
  const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}, .all_logits = true};
  setup.engine.step({&request, 1});
  EXPECT_EQ(saved(sequence), blocks) << "a row by itself is not taken back";
  GreedyChooser chooser;
  ExactDecoder decoder(setup.engine, {.drafts = 4, .adapt = false, .copy = false});
  Token last = token;
  while (sequence.length() < 250) {
    last = decoder.advance(sequence, last, 5, chooser).back();
    std::vector<int> positions = saved(sequence);
    if (positions.size() > blocks.size()) positions.resize(blocks.size());
    EXPECT_EQ(positions, blocks) << sequence.length();
    EXPECT_LE(saved(sequence).size(), blocks.size() + 1);
  }
  EXPECT_GT(decoder.statistics().rounds, 9);
}

TEST_P(Hybrid, WithoutStatesToSpareSequencesGoOnAllTheSame) {
  EngineOptions few = options(2);
  few.states = 0;
  SmallEngine other(GetParam(), small_hybrid(), GGML_TYPE_F32, sparse_plan(), few);
  Sequence a = other.engine.create(), b = other.engine.create(), expected = fresh(200);
  other.engine.prefill(a, some(0, 200));
  other.engine.prefill(b, some(0, 150));
  const Token token = 7;
  const Engine::Request request{.sequence = &a, .tokens = {&token, 1}};
  EXPECT_EQ(copy(other.engine.step({&request, 1})), step(expected, token));
  Sequence c = other.engine.create();
  EXPECT_EQ(test::error_of([&] { other.engine.prefill(c, some(0, 5)); }),
            "states of recurrent layers: all 2 are in use");
  EXPECT_EQ(c.length(), 0);
}

TEST_P(Hybrid, WhatAStepReadsCountsTheState) {
  const Hyperparameters& hp = setup.model.hp;
  const int64_t full = setup.engine.decode_bytes(100, Plan::full(8));
  EXPECT_EQ(full, setup.model.decode_weight_bytes() + 100 * hp.kv_bytes_per_token() + hp.state_bytes());
  EXPECT_LT(setup.engine.decode_bytes(100), full);
}

TEST_P(Hybrid, BenchmarksFillTheCache) {
  Sequence sequence = setup.engine.create();
  setup.engine.fill_random(sequence, 200, 1);
  const std::vector<float> logits = step(sequence, 5, true);
  EXPECT_TRUE(std::all_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); }));
}

}  // namespace
}  // namespace tidal
