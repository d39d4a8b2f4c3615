// K and V of which a few blocks are on the device and all others in host memory, and those that are in a file: whatever
// a sequence does, it gets what it gets where all are in the memory of the device.
#include "engine/prefix_cache.h"
#include "unit/engine_pair.h"
#include "unit/exact_texts.h"

namespace tidal {
namespace {

using test::copy;
using test::random_tokens;
using test::same_bits;
using test::SequencePair;
using test::SmallEngine;

constexpr int kChunk = 160;  // more than two blocks
constexpr int kSequences = 3;

struct Case {
  std::string backend;
  std::string model;  // dense, bits8 (the same with such a cache), windows, hybrid
  int device_blocks;  // kAllSlots: in a file
  bool scans;         // all layers that read all; otherwise a few select
};

std::string name_of(const Case& which) {
  const std::string blocks = which.device_blocks == kAllSlots ? "file" : std::to_string(which.device_blocks);
  return which.backend + "_" + which.model + "_" + blocks + (which.scans ? "_scans" : "_selects");
}

class HostBlocks : public testing::TestWithParam<Case> {
 protected:
  static Hyperparameters hp() {
    if (GetParam().model == "windows") return test::small_windowed(64);
    return GetParam().model == "hybrid" ? test::small_hybrid() : test::small_shape();
  }
  static Plan plan() {
    if (GetParam().scans) return Plan::sketch(hp(), 1, sketch_policy(test::kBudget));
    return test::small_plan();
  }
  static EngineOptions options(int device_blocks) {
    EngineOptions options{.context = 2048, .tokens = 8192, .chunk = kChunk, .sequences = kSequences};
    options.device_blocks = device_blocks;
    if (GetParam().model == "bits8") options.kv_type = KvType::Q8;
    if (device_blocks == 1) options.cached_rows = 16;  // fewer than a step reads
    return options;
  }
  static EngineOptions split_options() {
    EngineOptions split = options(GetParam().device_blocks);
    if (GetParam().device_blocks == kAllSlots) split.kv_place.directory = testing::TempDir();
    return split;
  }
  /// How many of so many blocks are on the host.
  static int beyond_device(int blocks) { return std::max(0, blocks - GetParam().device_blocks); }
  /// Without a device, or one that can do it, the test is skipped, but not before it is made.
  static bool possible() {
    static const bool device = has_cuda_device() && make_backend("cuda", 1)->host_kv_problem().empty();
    return GetParam().backend != "cuda" || device;
  }
  static std::string there() { return possible() ? GetParam().backend : "cpu"; }
  void SetUp() override {
    if (!possible()) GTEST_SKIP() << "there is no device that reads host memory";
  }

  SmallEngine whole{there(), hp(), GGML_TYPE_F32, plan(), options(kAllSlots)};
  SmallEngine split{there(), hp(), GGML_TYPE_F32, plan(), split_options()};
  const std::vector<Token> text = random_tokens(2048, 3);

  std::span<const Token> some(int first, int count) const {
    return std::span(text).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  }
};

INSTANTIATE_TEST_SUITE_P(All, HostBlocks, testing::ValuesIn([] {
                           std::vector<Case> cases = {{"cuda", "dense", 4, true}};
                           for (const std::string backend : {"cpu", "cuda"}) {
                             cases.push_back({backend, "dense", 1, true});
                             cases.push_back({backend, "dense", 4, false});
                             cases.push_back({backend, "bits8", 2, true});
                             cases.push_back({backend, "windows", 3, true});
                             cases.push_back({backend, "hybrid", 3, true});
                           }
                           for (const std::string model : {"dense", "bits8", "windows", "hybrid"}) {
                             cases.push_back({"cpu", model, kAllSlots, model != "dense"});
                           }
                           return cases;
                         }()),
                         [](const auto& info) { return name_of(info.param); });

TEST_P(HostBlocks, LongTextsAreTheSame) {
  SequencePair pair{whole.engine.create(), split.engine.create()};
  for (int at = 0; at < 1500; at += 300) {
    EXPECT_EQ(copy(whole.engine.prefill(pair.whole, some(at, 230))),
              copy(split.engine.prefill(pair.other, some(at, 230))))
        << at;
    // Past the end of a block, which is sketched.
    for (const Token token : some(at + 230, 70)) {
      ASSERT_EQ(copy(whole.engine.decode(pair.whole, token)), copy(split.engine.decode(pair.other, token))) << at;
    }
  }
  EXPECT_EQ(split.engine.pool().blocks_on_host(), beyond_device(blocks_for(1500)));
  EXPECT_EQ(whole.engine.pool().blocks_on_host(), 0);
  EXPECT_TRUE(GetParam().model != "dense" || same_bits(whole.cache(pair.whole), split.cache(pair.other)));
  pair.other.truncate(0);
  EXPECT_EQ(split.engine.pool().blocks_on_host(), 0);
}

TEST_P(HostBlocks, CorrectionsWriteWhereTheTokensAre) {
  for (const int polluted : {3, 100, 400}) {
    SequencePair pair{whole.engine.create(), split.engine.create()};
    whole.engine.prefill(pair.whole, some(0, 333));
    split.engine.prefill(pair.other, some(0, 333));
    for (const Token token : some(333, polluted)) {
      EXPECT_EQ(copy(whole.engine.decode(pair.whole, token)), copy(split.engine.decode(pair.other, token)));
    }
    ASSERT_EQ(pair.other.clean(), 333) << "nothing is polluted, so this tests nothing";
    whole.engine.correct(pair.whole);
    split.engine.correct(pair.other);
    EXPECT_EQ(copy(whole.engine.decode(pair.whole, 7)), copy(split.engine.decode(pair.other, 7))) << polluted;
  }
}

TEST_P(HostBlocks, AnythingInAnyOrderGivesTheSame) {
  const int all = whole.engine.pool().free_blocks();
  constexpr int kRounds = 200;
  const test::PairCounts counts = test::anything_in_any_order(whole, split, kSequences, kChunk, kRounds, 29);
  EXPECT_GT(counts.batches, kRounds / 4);
  EXPECT_GT(counts.truncated, 3);
  EXPECT_GT(counts.corrected, 0);
  EXPECT_GT(counts.forks, 0);
  EXPECT_EQ(whole.engine.pool().free_blocks(), all);
  EXPECT_EQ(split.engine.pool().free_blocks(), all);
  EXPECT_EQ(split.engine.pool().blocks_on_host(), 0);
}

TEST_P(HostBlocks, ExactTextIsThatOfFullAttention) {
  GreedyChooser chooser;
  Sequence full = whole.engine.create();
  whole.engine.prefill(full, some(0, 500));
  const std::vector<Token> expected = test::full_text(whole.engine, std::move(full), 5, 40, chooser);
  Sequence exact = split.engine.create();
  split.engine.prefill(exact, some(0, 500));
  ExactDecoder decoder(split.engine, {.drafts = 7, .adapt = false});
  EXPECT_EQ(test::exact_text(decoder, std::move(exact), 5, 40, chooser), expected);
}

TEST_P(HostBlocks, CachedPrefixesAreFoundOnTheHost) {
  std::vector<float> results[2];
  for (SmallEngine* setup : {&whole, &split}) {
    PrefixCache cache(setup->engine.pool());
    for (int text = 0; text < 3; ++text) {
      Sequence sequence = setup->engine.create();
      setup->engine.prefill(sequence, some(300 * text, 500));
      cache.keep(sequence);
    }
    std::vector<float>& result = results[setup == &split];
    for (const int text : {0, 2, 1, 0}) {
      const auto tokens = some(300 * text, 600);
      Sequence sequence = cache.find(tokens, 470, true, 2048);
      EXPECT_GT(sequence.length(), 300);
      const std::vector<float> logits =
          copy(setup->engine.prefill(sequence, tokens.subspan(static_cast<size_t>(sequence.length()))));
      result.insert(result.end(), logits.begin(), logits.end());
    }
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST_P(HostBlocks, WhatIsLeftComesBackToTheDevice) {
  Sequence first = split.engine.create(), second = split.engine.create();
  split.engine.prefill(first, some(0, 64 * 3));
  split.engine.prefill(second, some(0, 64 * 8));
  const int before = split.engine.pool().blocks_on_host();
  EXPECT_EQ(before, beyond_device(11));
  second.truncate(0);
  for (int i = 0; i < 4; ++i) split.engine.decode(first, 7);
  EXPECT_FALSE(split.engine.pool().on_host(first.blocks().back())) << "what is written";
  if (GetParam().device_blocks < 4 || before == 0) return;
  // One of four is left for what comes next.
  EXPECT_EQ(split.engine.pool().blocks_on_host(), 1);
  EXPECT_TRUE(split.engine.pool().on_host(first.blocks().front())) << "the last ones first";
}

TEST_P(HostBlocks, BenchmarksFillTheCacheAndComeBack) {
  SequencePair pair{whole.engine.create(), split.engine.create()};
  whole.engine.fill_random(pair.whole, 1000, 1);
  split.engine.fill_random(pair.other, 1000, 1);
  for (const Token token : some(0, 20)) {
    EXPECT_EQ(copy(whole.engine.decode(pair.whole, token)), copy(split.engine.decode(pair.other, token)));
  }
}

}  // namespace
}  // namespace tidal
