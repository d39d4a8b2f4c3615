// Layers that keep their window only: whatever a sequence does, it gets what it gets where they keep the whole context.
#include <array>

#include "unit/engine_pair.h"
#include "unit/exact_texts.h"

namespace tidal {
namespace {

using test::copy;
using test::random_tokens;
using test::same_bits;
using test::SequencePair;
using test::small_windowed;
using test::SmallEngine;

constexpr int kChunk = 96;
constexpr int kSequences = 3;

struct Case {
  std::string backend;
  int window;
  bool sinks;
};

class WindowsOnly : public testing::TestWithParam<Case> {
 protected:
  static Plan sparse_plan() { return Plan::sketch(hp(), 1, sketch_policy(test::kBudget)); }
  /// As in Gemma 4, too: with KV heads of their own, or with last layers that share K and V.
  static Hyperparameters hp() {
    Hyperparameters hp = small_windowed(GetParam().window, GetParam().sinks);
    if (GetParam().window == 5) hp.window_kv = {.heads = 1, .head_dim = 32};
    if (GetParam().window == 100) hp.shared_kv_layers = 3;
    return hp;
  }
  static EngineOptions options(bool whole, int windows) {
    EngineOptions options{.context = 2048, .tokens = 8192, .chunk = kChunk, .sequences = kSequences};
    options.whole_windows = whole;
    options.windows = windows;
    return options;
  }
  /// Without a device the test is skipped, but not before it is made.
  static std::string there() {
    return GetParam().backend == "cuda" && !has_cuda_device() ? "reference" : GetParam().backend;
  }
  void SetUp() override {
    if (GetParam().backend == "cuda" && !has_cuda_device()) GTEST_SKIP() << "there is no device";
  }

  SmallEngine whole{there(), hp(), GGML_TYPE_F32, sparse_plan(), options(true, 0)};
  // Of as few blocks as there can be.
  SmallEngine thin{there(), hp(), GGML_TYPE_F32, sparse_plan(), options(false, 0)};
  const std::vector<Token> text = random_tokens(2048, 3);

  std::span<const Token> some(int first, int count) const {
    return std::span(text).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  }
  static int free_windows(SmallEngine& setup) { return setup.engine.pool().windows().free_blocks(); }
};

// Not the reference backend, as in scheduler_windows_test.cpp.
INSTANTIATE_TEST_SUITE_P(All, WindowsOnly, testing::ValuesIn([] {
                           std::vector<Case> cases;
                           for (const std::string backend : {"cpu", "cuda"}) {
                             for (const int window : {5, 64, 100}) cases.push_back({backend, window, window == 64});
                           }
                           return cases;
                         }()),
                         [](const auto& info) { return info.param.backend + "_" + std::to_string(info.param.window); });

TEST_P(WindowsOnly, TakeLessMemory) {
  const KvPool &all = whole.engine.pool(), &few = thin.engine.pool();
  EXPECT_FALSE(all.windows());
  EXPECT_TRUE(few.windows());
  EXPECT_EQ(few.blocks(), all.blocks());
  const Hyperparameters& hp = whole.model.hp;
  const int shared = hp.shared_kv_layers;  // of three layers two have a window
  const int64_t window = (6 - shared * 2 / 3) * hp.kv(0).row_bytes(), other = (3 - shared / 3) * hp.kv(2).row_bytes();
  EXPECT_EQ(all.bytes(), kBlockTokens * (window + other) * all.blocks());
  EXPECT_EQ(few.bytes(), kBlockTokens * (other * few.blocks() + window * few.windows().blocks()));
  EXPECT_EQ(engine_memory(*thin.backend, thin.model.hp, sparse_plan(), options(false, 0)).cache, few.bytes());
  // A window, what can be taken back and a chunk: less than 8 blocks beside what the sequences share.
  EXPECT_LE(few.windows().blocks(), kSequences * (blocks_for(GetParam().window) + 4) + blocks_for(kChunk) + 2);
}

TEST_P(WindowsOnly, LongTextsAreTheSame) {
  SequencePair pair{whole.engine.create(), thin.engine.create()};
  const int free = free_windows(thin);
  for (int at = 0; at < 1500; at += 300) {
    EXPECT_EQ(copy(whole.engine.prefill(pair.whole, some(at, 290))),
              copy(thin.engine.prefill(pair.other, some(at, 290))))
        << at;
    for (const Token token : some(at + 290, 10)) {
      EXPECT_EQ(copy(whole.engine.decode(pair.whole, token)), copy(thin.engine.decode(pair.other, token))) << at;
    }
    EXPECT_LE(free - free_windows(thin), blocks_for(GetParam().window + SequenceWindows::kSlack) + 1 +
                                             SequenceWindows::kMostSaved * (blocks_for(GetParam().window) + 1));
  }
  pair.other.truncate(0);
  EXPECT_EQ(free_windows(thin), free);
}

TEST_P(WindowsOnly, WhatIsTruncatedToAnyPositionGoesOnTheSame) {
  SequencePair pair{whole.engine.create(), thin.engine.create()};
  whole.engine.prefill(pair.whole, some(0, 700));
  thin.engine.prefill(pair.other, some(0, 700));
  for (const Token token : some(700, 150)) {
    const Engine::Request a{.sequence = &pair.whole, .tokens = {&token, 1}};
    const Engine::Request b{.sequence = &pair.other, .tokens = {&token, 1}};
    whole.engine.step({&a, 1});
    thin.engine.step({&b, 1});
  }
  int again = 0;
  for (const int length : {850, 849, 800, 786, 700, 699, 650, 577, 576, 575, 300, 192, 130, 96, 95, 64, 3, 0}) {
    SequencePair one{pair.whole.fork(), pair.other.fork()};
    one.whole.truncate(length);
    one.other.truncate(length);
    again += !one.other.goes_on_at(length);
    const auto more = some(1000 + length, 1 + length % 7);
    EXPECT_EQ(copy(whole.engine.prefill(one.whole, more)), copy(thin.engine.prefill(one.other, more))) << length;
    // Once more from before, now that its chunk is cut.
    one.whole.truncate(length / 2);
    one.other.truncate(length / 2);
    const auto last = some(1200, 9);
    EXPECT_EQ(copy(whole.engine.prefill(one.whole, last)), copy(thin.engine.prefill(one.other, last))) << length;
    EXPECT_EQ(one.whole.clean(), one.other.clean());
  }
  EXPECT_GT(again, 5) << "nothing was computed again";
}

TEST_P(WindowsOnly, CorrectionsGoBackAsFarAsTheTextIsPolluted) {
  for (const int polluted : {3, 60, 64, 65, 200}) {
    SequencePair pair{whole.engine.create(), thin.engine.create()};
    whole.engine.prefill(pair.whole, some(0, 333));
    thin.engine.prefill(pair.other, some(0, 333));
    for (const Token token : some(333, polluted)) {
      EXPECT_EQ(copy(whole.engine.decode(pair.whole, token)), copy(thin.engine.decode(pair.other, token)));
    }
    ASSERT_EQ(pair.other.clean(), 333) << "nothing is polluted, so this tests nothing";
    whole.engine.correct(pair.whole);
    thin.engine.correct(pair.other);
    EXPECT_EQ(pair.other.clean(), 333 + polluted);
    EXPECT_EQ(copy(whole.engine.decode(pair.whole, 7)), copy(thin.engine.decode(pair.other, 7))) << polluted;
  }
}

TEST_P(WindowsOnly, AnythingInAnyOrderGivesTheSame) {
  const int all = whole.engine.pool().free_blocks(), all_windows = free_windows(thin);
  const int rounds = GetParam().backend == "reference" ? 120 : 400;
  const test::PairCounts counts = test::anything_in_any_order(whole, thin, kSequences, kChunk, rounds,
                                                              17 + static_cast<uint64_t>(GetParam().window));
  EXPECT_GT(counts.batches, rounds / 4);
  EXPECT_GT(counts.truncated, 3);
  EXPECT_GT(counts.corrected, 0);
  EXPECT_GT(counts.forks, 0);
  EXPECT_EQ(whole.engine.pool().free_blocks(), all);
  EXPECT_EQ(thin.engine.pool().free_blocks(), all);
  EXPECT_EQ(free_windows(thin), all_windows);
}

TEST_P(WindowsOnly, ExactTextIsThatOfFullAttention) {
  GreedyChooser chooser;
  Sequence full = whole.engine.create();
  whole.engine.prefill(full, some(0, 300));
  const std::vector<Token> expected = test::full_text(whole.engine, std::move(full), 5, 60, chooser);
  for (const int drafts : {7, 90}) {
    Sequence exact = thin.engine.create();
    thin.engine.prefill(exact, some(0, 300));
    ExactDecoder decoder(thin.engine, {.drafts = drafts, .adapt = false, .copy = drafts == 7});
    EXPECT_EQ(test::exact_text(decoder, std::move(exact), 5, 60, chooser), expected) << drafts;
  }
}

TEST_P(WindowsOnly, MoreSequencesThanThereIsRoomForAreComputedAgain) {
  std::vector<Sequence> sequences;
  for (int i = 0; i < 3 * kSequences; ++i) {
    sequences.push_back(thin.engine.create());
    thin.engine.prefill(sequences.back(), some(50 * i, 400));
  }
  int again = 0;
  for (int i = 0; i < 3 * kSequences; ++i) {
    Sequence expected = whole.engine.create();
    whole.engine.prefill(expected, some(50 * i, 400));
    Sequence& sequence = sequences[static_cast<size_t>(i)];
    again += !sequence.goes_on_at(400);
    EXPECT_EQ(copy(thin.engine.decode(sequence, 7)), copy(whole.engine.decode(expected, 7))) << i;
  }
  EXPECT_GT(again, 0) << "there was room for all";
}

TEST_P(WindowsOnly, BenchmarksFillTheCacheAndComeBack) {
  Sequence sequence = thin.engine.create();
  thin.engine.fill_random(sequence, 700, 1);
  const std::vector<float> logits = copy(thin.engine.decode(sequence, 5));
  EXPECT_TRUE(std::all_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); }));
  for (const Token token : some(0, 100)) thin.engine.decode(sequence, token);
  sequence.truncate(700);
  EXPECT_TRUE(sequence.goes_on_at(700));
  EXPECT_EQ(copy(thin.engine.decode(sequence, 5)), logits);
}

}  // namespace
}  // namespace tidal
