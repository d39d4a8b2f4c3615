// What a path may name instead of a model.
#include <grp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "model/mapped_file.h"
#include "support/loading.h"

namespace tidal::test {
namespace {

std::string open_refusal(const std::string& path) {
  try {
    GgufFile::open(path);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(GgufPath, ASoundFileLoadsAndStaysMapped) {
  const TemporaryFolder folder;
  const std::string path = folder.file("small.gguf");
  const GgufWriter writer = small_model("llama");
  writer.save(path);
  const auto backend = make_backend("reference", 1);
  const Model model = load_model(path, *backend);
  std::filesystem::remove(path);  // the mapping outlives the name and the GgufFile
  EXPECT_EQ(model.file_bytes, static_cast<int64_t>(writer.bytes().size()));
  EXPECT_EQ(model.quantisation, "F32");
  EXPECT_NE(model.storage, nullptr);
  GgufWriter copy = writer;
  const Bytes& down = copy.tensor("blk.1.ffn_down.weight").data;
  EXPECT_EQ(std::memcmp(model.layers[1].down.data, down.data(), down.size()), 0);
}

TEST(GgufPath, NothingThere) {
  const TemporaryFolder folder;
  const std::string path = folder.file("absent.gguf");
  EXPECT_EQ(open_refusal(path), path + ": cannot be opened: No such file or directory");
  EXPECT_EQ(open_refusal(""), ": cannot be opened: No such file or directory");
  const std::string below = folder.file("file/model.gguf");
  std::ofstream(folder.file("file")) << "x";
  EXPECT_EQ(open_refusal(below), below + ": cannot be opened: Not a directory");
}

TEST(GgufPath, EmptyFile) {
  const TemporaryFolder folder;
  const std::string path = folder.file("empty.gguf");
  std::ofstream(path).flush();
  EXPECT_EQ(open_refusal(path), path + ": is empty, expected a GGUF file");
}

TEST(GgufPath, FileOfZeros) {
  const TemporaryFolder folder;
  const std::string path = folder.file("zeros.gguf");
  std::ofstream(path).flush();
  std::filesystem::resize_file(path, 1 << 20);
  EXPECT_EQ(open_refusal(path), path + ": is not a GGUF file: it does not begin with the four letters GGUF");
}

TEST(GgufPath, Directory) {
  const TemporaryFolder folder;
  const std::string path = folder.file("");
  EXPECT_EQ(open_refusal(path), path + ": is a directory, expected a GGUF file");
}

TEST(GgufPath, FifoDoesNotHang) {
  const TemporaryFolder folder;
  const std::string path = folder.file("fifo.gguf");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  ::alarm(20);  // ends the test, should it wait for a writer
  EXPECT_EQ(open_refusal(path), path + ": is not a regular file, expected a GGUF file");
  ::alarm(0);
}

TEST(GgufPath, Device) {
  EXPECT_EQ(open_refusal("/dev/null"), "/dev/null: is not a regular file, expected a GGUF file");
}

TEST(GgufPath, LoopOfLinks) {
  const TemporaryFolder folder;
  const std::string path = folder.file("loop.gguf");
  std::filesystem::create_symlink(path, path);
  EXPECT_EQ(open_refusal(path), path + ": cannot be opened: Too many levels of symbolic links");
}

TEST(GgufPathDeathTest, NoPermission) {
  const TemporaryFolder folder;
  const std::string path = folder.file("secret.gguf");
  small_model("llama").save(path);
  std::filesystem::permissions(path, std::filesystem::perms::none);
  // Root may read everything, so the child becomes nobody.
  const auto child = [&] {
    constexpr uid_t kNobody = 65534;
    if (::geteuid() == 0 && (::setgroups(0, nullptr) != 0 || ::setgid(kNobody) != 0 || ::setuid(kNobody) != 0)) {
      std::perror("cannot drop privileges");
      std::_Exit(1);
    }
    std::fputs(open_refusal(path).c_str(), stderr);
    std::_Exit(0);
  };
  EXPECT_EXIT(child(), testing::ExitedWithCode(0), path + ": cannot be opened: Permission denied");
}

}  // namespace
}  // namespace tidal::test
