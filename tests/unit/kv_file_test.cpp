// K and V in a file: what is read from the disk is what was written, asked for or not; and what cannot be had is said.
#include "backend/kv_file.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>

#include "core/available_disk.h"
#include "engine/session_file.h"
#include "engine/taken_blocks.h"
#include "unit/engine_setup.h"

namespace tidal {
namespace {

using test::copy;
using test::error_of;
using test::random_tokens;
using test::same_bits;
using test::SmallEngine;

class KvFileTest : public testing::Test {
 protected:
  KvFileTest() { std::filesystem::create_directory(folder); }
  ~KvFileTest() override { std::filesystem::remove_all(folder); }

  EngineOptions options(bool in_file) const {
    EngineOptions options{.context = 1024, .tokens = 2048, .chunk = 200, .sequences = 2};
    if (in_file) options.kv_place.directory = folder;
    return options;
  }
  static Plan plan() { return Plan::sketch(test::small_shape(), 1, sketch_policy(test::kBudget)); }

  /// Has the pages of K and V leave the memory; false where the file system has nowhere to put them.
  static bool evict(const Engine& engine) {
    bool left = true;
    for (const KvLayer& layer : engine.pool().layers()) {
      const auto page = layer.file->page();
      const auto tiles = static_cast<size_t>(engine.pool().blocks()) * static_cast<size_t>(layer.kv_heads);
      const size_t bytes = tiles * static_cast<size_t>(layer.tile_bytes()) / page * page;
      msync(layer.data, bytes, MS_SYNC);
      madvise(layer.data, bytes, MADV_PAGEOUT);
      std::vector<unsigned char> there(bytes / page);
      left = left && mincore(layer.data, bytes, there.data()) == 0 &&
             std::none_of(there.begin(), there.end(), [](unsigned char flags) { return (flags & 1) != 0; });
    }
    return left;
  }

  const std::string folder = testing::TempDir() + "tidal-kv-file-" + std::to_string(::getpid());
  const std::vector<Token> text = random_tokens(1024, 3);
};

TEST_F(KvFileTest, TextsAreTheSameThoughNothingIsInMemory) {
  SmallEngine whole("cpu", GGML_TYPE_F32, plan(), options(false)), other("cpu", GGML_TYPE_F32, plan(), options(true));
  if (const Sequence some = other.prefilled(100, 1); !evict(other.engine)) {
    GTEST_SKIP() << "the file system of temporary files keeps them in memory";
  }
  Sequence expected = whole.engine.create(), given = other.engine.create();
  const KvFile& file = *other.engine.pool().layers().front().file;
  int64_t missed = file.missed();
  for (int at = 0; at < 800; at += 200) {
    const auto chunk = std::span(text).subspan(static_cast<size_t>(at), 195);
    evict(other.engine);
    EXPECT_EQ(copy(whole.engine.prefill(expected, chunk)), copy(other.engine.prefill(given, chunk))) << at;
    if (at > 0) {
      EXPECT_GT(file.missed(), missed) << "the chunk asked for nothing";
    }
    for (const Token token : std::span(text).subspan(static_cast<size_t>(at) + 195, 5)) {
      evict(other.engine);
      ASSERT_EQ(copy(whole.engine.decode(expected, token)), copy(other.engine.decode(given, token))) << at;
      EXPECT_GT(file.missed(), missed) << "nothing was asked for, so this tests nothing";
      missed = file.missed();
    }
    evict(other.engine);
    whole.engine.correct(expected);
    other.engine.correct(given);
  }
  EXPECT_TRUE(same_bits(whole.cache(expected), other.cache(given)));
}

TEST_F(KvFileTest, WhatIsInMemoryIsNotAskedForLong) {
  SmallEngine other("cpu", GGML_TYPE_F32, plan(), options(true));
  Sequence sequence = other.engine.create();
  other.engine.prefill(sequence, std::span(text).first(500));
  const KvFile& file = *other.engine.pool().layers().front().file;
  const int64_t missed = file.missed();
  for (const Token token : std::span(text).first(100)) other.engine.decode(sequence, token);
  EXPECT_EQ(file.missed(), missed);
}

TEST_F(KvFileTest, TheReferenceBackendHasThemThereToo) {
  SmallEngine whole("reference", GGML_TYPE_F32, plan(), options(false));
  SmallEngine other("reference", GGML_TYPE_F32, plan(), options(true));
  Sequence expected = whole.prefilled(70, 1), given = other.prefilled(70, 1);
  ASSERT_NE(other.engine.pool().layers().front().file, nullptr);
  EXPECT_EQ(copy(whole.engine.decode(expected, 7)), copy(other.engine.decode(given, 7)));
}

TEST_F(KvFileTest, HasNoNameItsRoomAtOnceAndGoesWithTheEngine) {
  // Bytes on disk of this process' files that were in the folder; none: -1.
  const auto on_disk = [&] {
    int64_t bytes = -1;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code ignored;
      struct stat file = {};
      if (!std::filesystem::read_symlink(entry, ignored).string().starts_with(folder + "/")) continue;
      if (stat(entry.path().c_str(), &file) == 0) bytes = std::max<int64_t>(bytes, file.st_blocks * 512);
    }
    return bytes;
  };
  {
    const SmallEngine other("cpu", GGML_TYPE_F32, plan(), options(true));
    const KvPool& pool = other.engine.pool();
    EXPECT_TRUE(std::filesystem::is_empty(folder));
    EXPECT_GT(pool.file_bytes(), 0);
    EXPECT_EQ(pool.bytes(), pool.file_bytes());
    EXPECT_GE(on_disk(), pool.file_bytes());
  }
  EXPECT_EQ(on_disk(), -1);
}

TEST_F(KvFileTest, WindowsStayInMemory) {
  const Hyperparameters hp = test::small_windowed(64);
  const SmallEngine other("cpu", hp, GGML_TYPE_F32, Plan::full(hp.layers), options(true));
  int in_file = 0, in_memory = 0;
  for (const KvLayer& layer : other.engine.pool().layers()) {
    ++(layer.file ? in_file : in_memory);
    EXPECT_EQ(layer.file == nullptr, layer.windowed);
  }
  EXPECT_GT(in_file, 0);
  EXPECT_GT(in_memory, 0);
  const EngineMemory memory = engine_memory(*other.backend, hp, Plan::full(hp.layers), options(true));
  EXPECT_EQ(memory.file, other.engine.pool().file_bytes());
  EXPECT_EQ(memory.cache + memory.file, other.engine.pool().bytes());
  EXPECT_EQ(memory.host, 0);
}

TEST_F(KvFileTest, SessionsAreReadIntoIt) {
  SmallEngine other("cpu", GGML_TYPE_F32, plan(), options(true));
  KvPool& pool = other.engine.pool();
  const Sequence sequence = other.prefilled(400, 5);
  const std::string path = folder + "/session";
  write_session(path, 7, {0, {sequence.tokens().begin(), sequence.tokens().end()}, 400}, pool, sequence.blocks());
  TakenBlocks taken(pool);
  const std::span<const BlockId> blocks = taken.take(blocks_for(400));
  load_session(path, 7, pool, blocks);
  const Sequence loaded(pool, 1024, sequence.tokens(), blocks, 400);
  EXPECT_TRUE(same_bits(other.cache(loaded), other.cache(sequence)));
  // Pages of the session would be memory as soon as they are written to.
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) EXPECT_EQ(line.find(path), std::string::npos) << line;
}

TEST_F(KvFileTest, WhatCannotBeHadIsSaid) {
  const auto made = [&](const std::string& directory, size_t bytes) {
    return error_of([&] { KvFile({1, 1, {bytes}, directory}, "KV cache"); });
  };
  EXPECT_EQ(made(folder, 1 << 20), "no error");
  const std::string missing = folder + "/none";
  EXPECT_EQ(made(missing, 4096), missing + ": no file can be made there: No such file or directory");
  const auto free = static_cast<size_t>(available_disk(folder));
  EXPECT_THAT(made(folder, 4 * free),
              testing::AllOf(testing::StartsWith(folder + ": the KV cache needs "),
                             testing::HasSubstr(" GiB on disk, "), testing::EndsWith(" GiB are free there")));
  EXPECT_EQ(directory_problem(folder), "");
  EXPECT_EQ(directory_problem(missing), "there is no such folder");
  std::ofstream(folder + "/file") << "x";
  EXPECT_EQ(directory_problem(folder + "/file"), "is a file, expected a folder");
  // A system that has no files to be made.
  if (std::filesystem::exists("/proc/self")) {
    EXPECT_THAT(made("/proc/self", 4096), testing::StartsWith("/proc/self: no file can be made there: "));
  }
}

TEST_F(KvFileTest, ADiskThatIsTooSmallIsKnownBeforeTheModelIsLoaded) {
  const Hyperparameters hp = test::small_shape();
  const auto backend = make_backend("cpu", 1);
  EngineOptions large = options(true);
  const auto each = hp.kv_bytes_per_token(KvType::Bf16);
  large.tokens = available_disk(folder) / each * 2;
  if (blocks_for(large.tokens) < 1 || large.tokens / kBlockTokens > std::numeric_limits<int>::max()) {
    GTEST_SKIP() << "the disk is larger than a cache may be";
  }
  EXPECT_THAT(error_of([&] { least_memory(*backend, hp, plan(), large); }),
              testing::StartsWith(folder + ": the KV cache needs "));
  large.kv_place.directory.clear();
  EXPECT_EQ(error_of([&] { least_memory(*backend, hp, plan(), large); }), "no error");
}

TEST_F(KvFileTest, BackendsWithADeviceRefuseIt) {
  if (!has_cuda_device()) GTEST_SKIP() << "there is no device";
  EXPECT_THAT(error_of([&] { SmallEngine("cuda", GGML_TYPE_F32, plan(), options(true)); }),
              testing::HasSubstr("K and V in a file are for backends on the host"));
}

}  // namespace
}  // namespace tidal
