// What engines promise, with a cache in 8 bits: each row is rounded once, when it is appended, so all holds bit for bit
// as it does with bf16.
#include "engine/prefix_cache.h"
#include "engine/session_file.h"
#include "eval/text_scores.h"
#include "unit/exact_texts.h"

namespace tidal {
namespace {

using test::copy;
using test::error_of;
using test::kBudget;
using test::random_tokens;
using test::same_bits;
using test::small_plan;
using test::SmallEngine;

const EngineOptions kOptions{.context = 512, .tokens = 4096, .chunk = 512, .sequences = 8, .kv_type = KvType::Q8};

Plan scanning_plan() {
  Plan plan = small_plan();
  plan.roles = {Role::Dense, Role::Select, Role::Sparse, Role::Scan, Role::Sparse, Role::Scan};
  plan.policy = sketch_policy(kBudget);
  return plan;
}

class In8Bits : public test::BackendTest<std::string> {
 protected:
  SmallEngine setup(const Plan& plan = small_plan(), ggml_type type = GGML_TYPE_F32) const {
    return SmallEngine(GetParam(), type, plan, kOptions);
  }
};
INSTANTIATE_TEST_SUITE_P(All, In8Bits, testing::ValuesIn(test::kBackends), [](const auto& info) { return info.param; });

TEST_P(In8Bits, TakesAsMuchAsRowsAreLong) {
  SmallEngine engine = setup(scanning_plan());
  const Hyperparameters& hp = engine.model.hp;
  const int64_t row = hp.kv_heads * KvRowLayout{KvType::Q8, hp.head_dim}.bytes();
  EXPECT_LT(row, hp.kv(0).row_bytes());
  EXPECT_EQ(hp.kv_bytes_per_token(KvType::Q8), hp.layers * row);
  EXPECT_EQ(engine.engine.pool().bytes(), hp.layers * row * kBlockTokens * engine.engine.pool().blocks());
  EXPECT_EQ(engine_memory(*engine.backend, hp, scanning_plan(), kOptions).cache, engine.engine.pool().bytes());
  const int64_t weights = engine.model.decode_weight_bytes();
  EXPECT_EQ(engine.engine.decode_bytes(300, Plan::full(hp.layers)) - weights, hp.layers * 300 * row);
}

TEST_P(In8Bits, LogitsAreNearThoseOfBf16) {
  SmallEngine eight = setup(), sixteen(GetParam());
  Sequence a = eight.engine.create(), b = sixteen.engine.create();
  const std::vector<Token> tokens = random_tokens(200, 1);
  const std::vector<float> ours = copy(eight.engine.prefill(a, tokens)),
                           theirs = copy(sixteen.engine.prefill(b, tokens));
  double difference = 0, size = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    difference += std::pow(ours[i] - theirs[i], 2);
    size += std::pow(theirs[i], 2);
  }
  EXPECT_GT(difference, 0);
  // An element is off by at most 1/254 of the largest of its block.
  EXPECT_LT(std::sqrt(difference / size), 0.05);
}

TEST_P(In8Bits, TheCorrectedCacheIsThatOfADenseRun) {
  SmallEngine engine = setup();
  for (const int count : {1, 8, 70}) {
    const std::vector<Token> more = random_tokens(count, 5);
    Sequence dense = engine.prefilled(100, 1), sparse = engine.prefilled(100, 1);
    engine.engine.prefill(dense, more);
    for (const Token token : more) engine.engine.decode(sparse, token);
    EXPECT_FALSE(same_bits(engine.cache(sparse), engine.cache(dense))) << "nothing was polluted, so this tests nothing";
    engine.engine.correct(sparse);
    EXPECT_TRUE(same_bits(engine.cache(sparse), engine.cache(dense))) << count;
  }
}

TEST_P(In8Bits, TruncatedAndForkedTextsGoOnAsTheirOwn) {
  SmallEngine engine = setup(scanning_plan());
  const std::vector<Token> tokens = random_tokens(150, 1), more = random_tokens(30, 2);
  Sequence once = engine.engine.create(), other = engine.engine.create();
  engine.engine.prefill(once, tokens);
  engine.engine.prefill(other, tokens);
  Sequence fork = once.fork();
  for (const Token token : random_tokens(20, 3)) engine.engine.decode(fork, token);
  EXPECT_TRUE(same_bits(engine.cache(once), engine.cache(other))) << "a fork has written into what it shares";
  for (const Token token : random_tokens(20, 3)) engine.engine.decode(once, token);
  EXPECT_TRUE(same_bits(engine.cache(once), engine.cache(fork)));
  once.truncate(150);
  for (const Token token : more) {
    EXPECT_EQ(copy(engine.engine.decode(once, token)), copy(engine.engine.decode(other, token)));
  }
}

TEST_P(In8Bits, SketchesAreThoseOfTheKeysInTheCache) {
  SmallEngine engine = setup(scanning_plan());
  Sequence sequence = engine.prefilled(100, 1);
  for (const Token token : random_tokens(100, 2)) engine.engine.decode(sequence, token);
  const int bits = scanning_plan().policy.sketch_bits;
  for (const KvLayer& layer : engine.engine.pool().layers()) {
    const SketchLayout layout{layer.head_dim, bits};
    std::vector<std::byte> tile(static_cast<size_t>(layer.tile_bytes()));
    std::vector<std::byte> kept(static_cast<size_t>(layout.bytes())), expected(kept.size());
    for (int b = 0; b < sequence.length() / kBlockTokens; ++b) {
      for (int h = 0; h < layer.kv_heads; ++h) {
        engine.backend->read(tile.data(), layer.tile(sequence.blocks()[b], h), tile.size());
        engine.backend->read(kept.data(), layer.sketch(bits, sequence.blocks()[b], h), kept.size());
        sketch_block(layout, layer.type, tile.data(), expected.data());
        ASSERT_EQ(kept, expected) << "block " << b;
      }
    }
  }
}

TEST_P(In8Bits, ExactTextIsThatOfFullAttention) {
  for (const Plan& plan : {small_plan(), scanning_plan()}) {
    SmallEngine engine = setup(plan, GGML_TYPE_Q8_0);
    GreedyChooser chooser;
    const Sequence prefix = engine.prefilled(130, 7);
    const std::vector<Token> expected = test::full_text(engine.engine, prefix.fork(), 5, 40, chooser);
    ExactDecoder decoder(engine.engine, {.drafts = 7, .adapt = false, .copy = false});
    EXPECT_EQ(test::exact_text(decoder, prefix.fork(), 5, 40, chooser), expected);
    EXPECT_GT(decoder.statistics().all().drafted, 0);
  }
}

TEST_P(In8Bits, BatchesChangeNothing) {
  SmallEngine engine = setup(scanning_plan());
  Sequence alone = engine.prefilled(140, 1), beside = engine.prefilled(140, 1), other = engine.prefilled(70, 2);
  for (const Token token : random_tokens(10, 3)) {
    const std::vector<float> expected = copy(engine.engine.decode(alone, token));
    const Engine::Request requests[] = {{.sequence = &other, .tokens = {&token, 1}, .decode = true},
                                        {.sequence = &beside, .tokens = {&token, 1}, .decode = true}};
    const std::span<const float> both = engine.engine.step(requests);
    const std::span<const float> own = both.last(expected.size());
    EXPECT_TRUE(std::equal(own.begin(), own.end(), expected.begin()));
  }
}

TEST_P(In8Bits, CachedPrefixesAreWhatTheyWere) {
  SmallEngine engine = setup();
  PrefixCache cache(engine.engine.pool());
  const std::vector<Token> tokens = random_tokens(200, 1);
  Sequence first = engine.engine.create();
  engine.engine.prefill(first, tokens);
  cache.keep(first);
  Sequence again = cache.find(tokens, 128, true, 512);
  ASSERT_EQ(again.length(), 128);
  engine.engine.prefill(again, std::span(tokens).subspan(128));
  first.truncate(128);
  again.truncate(128);
  EXPECT_TRUE(same_bits(engine.cache(first), engine.cache(again)));
}

TEST_P(In8Bits, IsHeldAgainstFullAttentionOfBf16) {
  const std::vector<Token> text = random_tokens(120, 1), more = random_tokens(12, 2);
  SmallEngine eight = setup(), sixteen(GetParam());
  Sequence ours = eight.engine.create(), theirs = sixteen.engine.create();
  eight.engine.prefill(ours, text);
  sixteen.engine.prefill(theirs, text);
  const Plan plan = small_plan();
  const auto alone = score_text(sixteen.engine, theirs, more, {&plan, 1});
  const auto same = score_text(sixteen.engine, theirs, more, {&plan, 1}, {}, {&sixteen.engine, &theirs});
  const auto other = score_text(eight.engine, ours, more, {&plan, 1}, {}, {&sixteen.engine, &theirs});
  for (size_t i = 0; i < alone.size(); ++i) {
    EXPECT_EQ(same[i].kl, alone[i].kl) << "the reference is the engine itself";
    EXPECT_EQ(same[i].nll, alone[i].nll);
    EXPECT_EQ(same[i].same, alone[i].same);
  }
  EXPECT_EQ(same[0].kl, 0);
  EXPECT_GT(other[0].kl, 0);
  EXPECT_LT(other[0].kl, alone[1].kl) << "8 bits lose less than a budget of a fifth of the context";
}

TEST_P(In8Bits, RandomContentsAreNumbersOfAllRows) {
  SmallEngine engine = setup();
  Sequence filled = engine.engine.create();
  engine.engine.fill_random(filled, 200, 3);
  int zeros = 0;
  for (const Bf16 value : engine.cache(filled)) {
    ASSERT_LE(std::abs(to_float(value)), 1.01f);
    zeros += to_float(value) == 0;
  }
  EXPECT_LT(zeros, 200 * 6 * 64) << "one element in a hundred rounds to 0";
}

TEST_P(In8Bits, SessionsOfTheOtherTypeAreRefusedInASentence) {
  SmallEngine eight = setup(), sixteen(GetParam());
  const uint64_t of_eight = session_fingerprint(1, eight.engine.pool());
  const uint64_t of_sixteen = session_fingerprint(1, sixteen.engine.pool());
  EXPECT_NE(of_eight, of_sixteen) << "folders of sessions must not mix them";
  const std::string path = testing::TempDir() + "in_8_bits_" + GetParam() + ".kv";
  Sequence sequence = eight.prefilled(100, 1);
  const std::vector<Token> tokens(sequence.tokens().begin(), sequence.tokens().end());
  write_session(path, of_eight, {0, tokens, 100}, eight.engine.pool(), sequence.blocks());
  EXPECT_EQ(error_of([&] { read_session(path, of_sixteen); }),
            path +
                ": is a session in q8_0, but the cache is in bf16: --cache-type-k and --cache-type-v of both must be "
                "the same");
  EXPECT_EQ(error_of([&] { read_session(path, of_eight + 1); }),
            path + ": is a session of another model or of another layout");
  Sequence loaded = eight.engine.create();
  loaded.reserve(100);
  load_session(path, of_eight, eight.engine.pool(), loaded.blocks());
  loaded.append(tokens, true);
  EXPECT_TRUE(same_bits(eight.cache(loaded), eight.cache(sequence)));

  Sequence other = sixteen.prefilled(100, 1);
  write_session(path, of_sixteen, {0, tokens, 100}, sixteen.engine.pool(), other.blocks());
  EXPECT_EQ(error_of([&] { read_session(path, of_eight); }),
            path +
                ": is a session in bf16, but the cache is in q8_0: --cache-type-k and --cache-type-v of both must be "
                "the same");
}

}  // namespace
}  // namespace tidal
