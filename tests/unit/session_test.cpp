// Texts on disk: what comes back, what is never served, what goes first.
#include "engine/session_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "engine/prefix_cache.h"
#include "support/backends.h"
#include "support/error.h"
#include "support/random.h"
#include "support/small_model.h"

namespace tidal {
namespace {

namespace fs = std::filesystem;
using test::error_of;

constexpr int kPart = SessionStore::kPartTokens;

/// A pool, sequences of random K/V that no model computed, and a folder.
struct Texts {
  static Hyperparameters shape() {
    Hyperparameters hp = test::small_shape(2);
    hp.kv_heads = 2;
    hp.head_dim = 16;
    return hp;
  }

  explicit Texts(const std::string& name = "reference", int widths = 0)
      : backend(make_backend(name, 1)), pool(*backend, shape(), 400) {
    for (const int bits : kSketchBits) {
      if (widths & bits) pool.keep_sketches(bits);
    }
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    std::string folder = std::string(test->test_suite_name()) + "." + test->name();
    std::replace(folder.begin(), folder.end(), '/', '_');
    directory = testing::TempDir() + folder;
    fs::remove_all(directory);
  }
  ~Texts() { fs::remove_all(directory); }

  Sequence make(const std::vector<Token>& tokens, int clean, uint64_t seed = 1) {
    Sequence sequence(pool);
    sequence.reserve(static_cast<int>(tokens.size()));
    sequence.append(std::span(tokens).first(clean), true);
    sequence.append(std::span(tokens).subspan(clean), false);
    test::Random random(seed);
    std::vector<Bf16> content(pool.kv_bytes(0) / sizeof(Bf16) * sequence.blocks().size());
    for (size_t layer = 0; layer < pool.layers().size(); ++layer) {
      for (Bf16& value : content) value = to_bf16(random.uniform(1));
      pool.write_kv(layer, sequence.blocks(), reinterpret_cast<const std::byte*>(content.data()));
      pool.write_sketches(layer, sequence.blocks(), nullptr, 0, tokens.size() / kBlockTokens);
    }
    return sequence;
  }
  Sequence make(const std::vector<Token>& tokens) { return make(tokens, static_cast<int>(tokens.size())); }

  /// All that the pool has of the tokens' whole blocks.
  std::vector<std::byte> content(const Sequence& sequence) {
    const auto blocks = sequence.blocks().first(static_cast<size_t>(sequence.length() / kBlockTokens));
    const size_t bytes = blocks.size() * (pool.kv_bytes(0) + pool.sketch_bytes(0, pool.sketch_widths()));
    std::vector<std::byte> all(bytes * pool.layers().size());
    for (size_t layer = 0; layer < pool.layers().size(); ++layer) {
      std::byte* to = all.data() + bytes * layer;
      pool.read_kv(layer, blocks, to);
      pool.read_sketches(layer, blocks, to + blocks.size() * pool.kv_bytes(0));
    }
    return all;
  }

  SessionStore open(int64_t most = int64_t{1} << 30, uint64_t model = 7) {
    return {pool, {.directory = directory, .most_bytes = most, .model = model, .warn = [this](const std::string& text) {
                     warnings.push_back(text);
                   }}};
  }
  /// What a new server finds of it.
  Sequence found(SessionStore& store, const std::vector<Token>& tokens, bool clean = false) {
    const auto found = store.find(tokens, static_cast<int>(tokens.size()), clean);
    return store.load(found, tokens, Sequence(pool));
  }
  std::vector<std::string> files() const {
    std::vector<std::string> paths;
    for (const auto& entry : fs::directory_iterator(directory)) paths.push_back(entry.path().string());
    std::sort(paths.begin(), paths.end());
    return paths;
  }

  std::unique_ptr<Backend> backend;
  KvPool pool;
  std::string directory;
  std::vector<std::string> warnings;
};

std::vector<Token> counted(int first, int count) {
  std::vector<Token> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::vector<Token> joined(std::vector<Token> a, const std::vector<Token>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class SessionsTest : public test::BackendTest<std::string> {};

TEST_P(SessionsTest, ATextComesBackBitForBit) {
  for (const int count : {kPart, 300, kPart + 1, 2 * kPart + 700}) {
    Texts texts(GetParam(), 2);
    const std::vector<Token> tokens = counted(1, count);
    const Sequence text = texts.make(tokens, count - 40);
    texts.open().keep(text);
    SessionStore store = texts.open();
    const Sequence again = texts.found(store, tokens);
    ASSERT_EQ(again.length(), count);
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), again.tokens().begin()));
    EXPECT_EQ(again.clean(), count - 40);
    EXPECT_EQ(texts.content(again), texts.content(text));
    EXPECT_TRUE(texts.warnings.empty());
  }
}

// The files were written by a server whose plan kept other sketches.
TEST_P(SessionsTest, SketchesThatAreMissingAreMade) {
  Texts texts(GetParam(), 1);
  const std::vector<Token> tokens = counted(1, 500);
  const Sequence text = texts.make(tokens);
  texts.open().keep(text);
  texts.pool.keep_sketches(4);
  SessionStore store = texts.open();
  const Sequence again = texts.found(store, tokens);
  ASSERT_EQ(again.length(), 500);
  EXPECT_EQ(texts.content(again), texts.content(text));
}

// Where it can the backend maps the file; the file must not learn of what is written there.
TEST_P(SessionsTest, WhatIsWrittenOverATextDoesNotReachItsFile) {
  Texts texts(GetParam(), 2);
  const std::vector<Token> tokens = counted(1, kPart);
  const Sequence text = texts.make(tokens);
  texts.open().keep(text);
  const std::vector<std::byte> content = texts.content(text);
  SessionStore store = texts.open();
  std::ifstream maps("/proc/self/maps");
  const Sequence again = texts.found(store, tokens);
  const std::string mapped((std::istreambuf_iterator<char>(maps)), {});
  EXPECT_EQ(mapped.find(texts.directory) != std::string::npos, GetParam() == "cpu");
  const std::vector<std::byte> zeros(texts.pool.kv_bytes(0) * again.blocks().size());
  for (size_t layer = 0; layer < texts.pool.layers().size(); ++layer) {
    texts.pool.write_kv(layer, again.blocks(), zeros.data());
  }
  EXPECT_NE(texts.content(again), content);
  EXPECT_EQ(texts.content(texts.found(store, tokens)), content);
  EXPECT_TRUE(texts.warnings.empty());
  // A file that is gone stays readable where it is mapped.
  const Sequence third = texts.found(store, tokens);
  fs::remove_all(texts.directory);
  EXPECT_EQ(texts.content(third), content);
}

// `tidal run` reads a beginning of a file of any length.
TEST_P(SessionsTest, OneFileHoldsALongTextAndGivesItsBeginning) {
  Texts texts(GetParam(), 2);
  fs::create_directories(texts.directory);
  const std::string path = texts.directory + "/text";
  const std::vector<Token> tokens = counted(1, 2 * kPart + 100);
  const Sequence text = texts.make(tokens);
  write_session(path, 5, {0, tokens, 77}, texts.pool, text.blocks());
  EXPECT_TRUE(is_session(path));
  const SessionPart part = read_session(path, 5);
  EXPECT_EQ(part.tokens, tokens);
  EXPECT_EQ(part.clean, 77);
  std::vector<BlockId> blocks(10);
  for (BlockId& block : blocks) block = texts.pool.take();
  load_session(path, 5, texts.pool, blocks);
  const std::span<const Token> beginning = std::span(tokens).first(10 * kBlockTokens);
  Sequence expected = text.fork();
  expected.truncate(10 * kBlockTokens);
  EXPECT_EQ(texts.content(Sequence(texts.pool, 0, beginning, blocks, 77)), texts.content(expected));
  EXPECT_EQ(error_of([&] { read_session(path, 6); }), path + ": is a session of another model or of another layout");
}

INSTANTIATE_TEST_SUITE_P(All, SessionsTest, testing::ValuesIn(test::kBackends),
                         [](const auto& info) { return info.param; });

TEST(Sessions, TheLongestBeginningIsFound) {
  Texts texts;
  const std::vector<Token> common = counted(1, kPart + 100);
  const std::vector<Token> one = joined(common, counted(10000, 3000)), two = joined(common, counted(20000, 900));
  SessionStore writer = texts.open();
  writer.keep(texts.make(one, kPart + 500));
  writer.keep(texts.make(two));
  SessionStore store = texts.open();
  const auto length = [&](const std::vector<Token>& tokens, bool clean = false) {
    return store.find(tokens, static_cast<int>(tokens.size()), clean).length;
  };
  EXPECT_EQ(length(one), static_cast<int>(one.size()));
  EXPECT_EQ(length(two), static_cast<int>(two.size()));
  EXPECT_EQ(length(joined(two, {5, 6})), static_cast<int>(two.size()));
  EXPECT_EQ(length(joined(common, {5, 6})), static_cast<int>(common.size()));
  EXPECT_EQ(length(counted(1, 50)), 50);
  EXPECT_EQ(length(counted(2, 50)), 0);
  EXPECT_EQ(length({}), 0);
  EXPECT_EQ(length(one, true), kPart + 500) << "what sparse attention computed was not asked for";
  EXPECT_EQ(store.find(one, 777, false).length, 777);
  EXPECT_EQ(store.files(), 3 + 1) << "the part that both begin with is there once, and each has the rest";
}

TEST(Sessions, WhatIsInMemoryIsNotReadAgain) {
  Texts texts;
  const std::vector<Token> tokens = counted(1, 3 * kPart);
  const Sequence text = texts.make(tokens);
  SessionStore store = texts.open();
  store.keep(text);
  Sequence known = text.fork();
  known.truncate(kPart + 900);
  const auto found = store.find(tokens, 3 * kPart, false);
  EXPECT_EQ(found.missing_blocks(known.length()), 2 * kPart / kBlockTokens);
  const int free = texts.pool.free_blocks();
  const Sequence again = store.load(found, tokens, known);
  EXPECT_EQ(free - texts.pool.free_blocks(), 2 * kPart / kBlockTokens);
  EXPECT_EQ(again.blocks()[0], text.blocks()[0]);
  EXPECT_EQ(again.length(), 3 * kPart);
  EXPECT_EQ(texts.content(again), texts.content(text));
}

TEST(Sessions, AConversationThatGrowsLeavesNothingBehind) {
  Texts texts;
  SessionStore store = texts.open();
  for (const int count : {300, 900, 1500, kPart, kPart + 300, kPart + 1000}) {
    store.keep(texts.make(counted(1, count)));
    EXPECT_EQ(texts.files().size(), count <= kPart ? 1u : 2u) << count;
  }
  int64_t bytes = 0;
  for (const std::string& path : texts.files()) bytes += static_cast<int64_t>(fs::file_size(path));
  EXPECT_EQ(store.bytes(), bytes);
  // A beginning of it, and the same with fewer clean tokens, are there already; with more they are written.
  store.keep(texts.make(counted(1, 700)));
  store.keep(texts.make(counted(1, kPart + 1000), 10));
  EXPECT_EQ(texts.files().size(), 2u);
  store.keep(texts.make(counted(1, 100)));
  EXPECT_EQ(texts.files().size(), 2u) << "texts of a moment are not worth a file";
}

TEST(Sessions, TheLeastRecentlyUsedGoFirst) {
  Texts texts;
  SessionStore store = texts.open();
  store.keep(texts.make(counted(1, 2 * kPart)));
  const int64_t size = store.bytes();
  store.keep(texts.make(counted(30000, kPart)));
  store.keep(texts.make(counted(40000, kPart)));
  texts.found(store, counted(1, 2 * kPart));  // used again
  SessionStore smaller = texts.open(size + size / 4);
  EXPECT_EQ(smaller.find(counted(1, 2 * kPart), 2 * kPart, false).length, 2 * kPart);
  EXPECT_EQ(smaller.files(), 2);
  EXPECT_EQ(texts.files().size(), 2u);
  // Of a long text the end goes before what it hangs on.
  SessionStore half = texts.open(size / 2 + 1000);
  EXPECT_EQ(half.find(counted(1, 2 * kPart), 2 * kPart, false).length, kPart);
  SessionStore none = texts.open(0);
  none.keep(texts.make(counted(1, 500)));
  EXPECT_TRUE(texts.files().empty());
}

TEST(Sessions, FilesOfAnotherModelAreLeftAlone) {
  Texts texts;
  texts.open().keep(texts.make(counted(1, 500)));
  SessionStore other = texts.open(int64_t{1} << 30, 8);
  EXPECT_EQ(other.files(), 0);
  other.keep(texts.make(counted(1, 500)));
  EXPECT_EQ(texts.files().size(), 2u);
  EXPECT_EQ(texts.open().files(), 1);
  // Under a name that says otherwise.
  const std::string foreign = texts.files()[0], renamed = texts.files()[1];
  fs::rename(foreign, renamed);
  for (const uint64_t model : {7, 8}) {
    SessionStore store = texts.open(int64_t{1} << 30, model);
    EXPECT_EQ(store.files(), 0) << model;
  }
  EXPECT_EQ(texts.warnings.size(), 1u);
}

TEST(Sessions, WhatIsDamagedIsNeverServed) {
  Texts texts;
  const std::vector<Token> tokens = counted(1, 300);
  const Sequence text = texts.make(tokens);
  texts.open().keep(text);
  const std::string path = texts.files().at(0);
  std::ifstream file(path, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(file)), {});
  test::Random random(3);
  for (int round = 0; round < 200; ++round) {
    std::string damaged = whole;
    const auto at = static_cast<size_t>((random.uniform(0.5f) + 0.5f) * 0.999f * static_cast<float>(whole.size()));
    if (round % 4 == 0) {
      damaged.resize(round < 8 ? round * 10 : at);
    } else {
      const size_t place = round % 4 == 1 ? at % 80 : at;
      damaged[place] = static_cast<char>(damaged[place] ^ (1 << round % 8));
    }
    std::ofstream(path, std::ios::binary) << damaged;
    texts.warnings.clear();
    SessionStore store = texts.open();
    const Sequence again = texts.found(store, tokens);
    EXPECT_EQ(again.length(), 0) << "round " << round;
    ASSERT_EQ(texts.warnings.size(), 1u) << "round " << round;
    EXPECT_TRUE(texts.warnings[0].starts_with(path)) << texts.warnings[0];
    EXPECT_EQ(texts.found(store, tokens).length(), 0);
    EXPECT_EQ(texts.warnings.size(), 1u) << "once";
  }
  EXPECT_EQ(texts.pool.free_blocks(), texts.pool.blocks() - blocks_for(300)) << "no block is lost";
}

TEST(Sessions, AFolderThatGoesAwayIsWarnedOf) {
  Texts texts;
  SessionStore store = texts.open();
  fs::remove_all(texts.directory);
  store.keep(texts.make(counted(1, 500)));
  ASSERT_EQ(texts.warnings.size(), 1u);
  EXPECT_NE(texts.warnings[0].find("cannot be written"), std::string::npos) << texts.warnings[0];
  EXPECT_EQ(store.files(), 0);
  std::ofstream(texts.directory) << "a file";
  EXPECT_EQ(error_of([&] { texts.open(); }), texts.directory + ": is no folder, expected one for sessions");
}

TEST(Sessions, WhatMemoryHasNoRoomForIsFoundOnDisk) {
  Texts texts;
  SessionStore store = texts.open();
  PrefixCache cache(texts.pool, &store);
  const std::vector<Token> first = counted(1, 5000), second = counted(50000, 3000);
  std::vector<std::byte> content;
  {
    const Sequence text = texts.make(first);
    content = texts.content(text);
    cache.keep(text);
  }
  cache.keep(texts.make(second));
  EXPECT_EQ(store.files(), 0) << "there is room";
  ASSERT_TRUE(cache.make_room(texts.pool.blocks() - 10));
  const int left = cache.blocks();
  EXPECT_LE(left, 10);
  EXPECT_EQ(store.files(), 3 + 2);
  {
    const Sequence again = cache.find(first, 5000, false, 0);
    ASSERT_EQ(again.length(), 5000);
    EXPECT_EQ(texts.content(again), content);
    EXPECT_EQ(cache.blocks(), left + blocks_for(5000));
    // Nothing is there for it that could go.
    EXPECT_EQ(cache.find(second, 3000, false, 0).length(), 3000);
  }
  const auto inodes = [&] {
    std::vector<ino_t> all;
    for (const std::string& path : texts.files()) {
      struct stat status = {};
      EXPECT_EQ(::stat(path.c_str(), &status), 0);
      all.push_back(status.st_ino);
    }
    return all;
  };
  const std::vector<ino_t> written = inodes();
  cache.save();
  EXPECT_EQ(inodes(), written) << "what came from there is not written again";
  cache.clear();
  EXPECT_EQ(texts.pool.free_blocks(), texts.pool.blocks());
}

TEST(Sessions, WithoutRoomMemoryIsEnough) {
  Texts texts;
  SessionStore store = texts.open();
  const std::vector<Token> tokens = counted(1, 5000);
  store.keep(texts.make(tokens));
  PrefixCache cache(texts.pool, &store);
  Sequence other(texts.pool);
  other.reserve((texts.pool.free_blocks() - 20) * kBlockTokens);  // somebody else's
  EXPECT_EQ(cache.find(tokens, 5000, false, 0).length(), 0);
  EXPECT_EQ(cache.find(tokens, 600, false, 0).length(), 0) << "a file is read whole";
}

}  // namespace
}  // namespace tidal
