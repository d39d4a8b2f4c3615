// Result files: going on after a kill, and never harming a file that is another's.
#include "report/result_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "support/error.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

class ResultFiles : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("tidal_results_" + std::to_string(::getpid()) + "_" +
                                                        testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "rows.jsonl").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string text() const {
    std::ostringstream out;
    out << std::ifstream(path_, std::ios::binary).rdbuf();
    return out.str();
  }
  void write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }
  std::string error(const Json& header) const {
    return test::error_of([&] { ResultFile file(path_, header); });
  }

  std::filesystem::path folder_;
  std::string path_;
  const Json header_ = {{"command", "eval needle"}, {"model", "1a2b"}, {"lengths", {4096, 16384}}, {"share", 0.1}};
};

TEST_F(ResultFiles, GoesOnWhereItStopped) {
  {
    ResultFile file(path_, header_);
    EXPECT_TRUE(file.rows().empty());
    file.add({{"length", 4096}, {"depth", 0.5}, {"found", true}});
    file.add({{"length", 16384}, {"depth", 0.5}, {"found", false}});
    // In the file at once, not when it is closed.
    EXPECT_EQ(text(), header_.dump() +
                          "\n{\"length\":4096,\"depth\":0.5,\"found\":true}\n"
                          "{\"length\":16384,\"depth\":0.5,\"found\":false}\n");
  }
  ResultFile file(path_, header_);
  ASSERT_EQ(file.rows().size(), 2u);
  ASSERT_NE(file.find({{"length", 16384}}), nullptr);
  EXPECT_EQ((*file.find({{"length", 16384}}))["found"], false);
  EXPECT_EQ(file.find({{"depth", 0.5}, {"length", 4096}}), &file.rows()[0]);
  EXPECT_EQ(file.find({{"length", 16384}, {"depth", 0.25}}), nullptr);
  EXPECT_EQ(file.find({{"policy", "paper"}}), nullptr);
  EXPECT_EQ(file.find(Json::object()), &file.rows()[0]);
  file.add({{"length", 30720}});
  EXPECT_EQ(file.rows().size(), 3u);
  EXPECT_NE(file.find({{"length", 30720}}), nullptr);
}

TEST_F(ResultFiles, EveryCutGivesTheWholeRowsBefore) {
  { ResultFile file(path_, header_); }
  const size_t after_header = text().size();
  {
    ResultFile file(path_, header_);
    file.add({{"a", 1}});
    file.add({{"a", 2}, {"text", "x\ny"}});
  }
  const std::string whole = text();
  const size_t after_first = whole.find('\n', after_header) + 1;
  for (size_t cut = 0; cut <= whole.size(); ++cut) {
    write(whole.substr(0, cut));
    const size_t rows = cut < after_first ? 0 : cut < whole.size() ? 1 : 2;
    ResultFile file(path_, header_);
    ASSERT_EQ(file.rows().size(), rows) << cut;
    file.add({{"a", 3}});
    const size_t kept = rows == 0 ? after_header : rows == 1 ? after_first : whole.size();
    ASSERT_EQ(text(), whole.substr(0, kept) + "{\"a\":3}\n") << cut;
  }
}

TEST_F(ResultFiles, RefusesAnotherHeaderAndLeavesTheFile) {
  {
    ResultFile file(path_, header_);
    file.add({{"a", 1}});
  }
  write(text() + "{\"cut");
  const std::string before = text();
  Json other = header_;
  other["model"] = "ffff";
  EXPECT_EQ(error(other), path_ +
                              ": holds the results of another run: 'model' is \"1a2b\" there and \"ffff\" now; choose "
                              "another --output or remove the file");
  other = header_;
  other.erase("share");
  EXPECT_NE(error(other).find("'share' is 0.1 there and nothing now"), std::string::npos) << error(other);
  other = header_;
  other["policy"] = "paper";
  EXPECT_NE(error(other).find("'policy' is nothing there and \"paper\" now"), std::string::npos) << error(other);
  EXPECT_EQ(text(), before);
}

TEST_F(ResultFiles, OrderOfFieldsAndWhatJsonCannotHoldDoNotMatter) {
  const Json header = {
      {"p", std::numeric_limits<double>::quiet_NaN()}, {"third", 1.0 / 3}, {"in", {{"x", 1}, {"y", 2}}}};
  { ResultFile file(path_, header); }
  EXPECT_EQ(error(header), "no error");
  EXPECT_EQ(error({{"in", {{"y", 2}, {"x", 1}}}, {"third", 1.0 / 3}, {"p", nullptr}}), "no error");
  ResultFile file(path_, header);
  file.add({{"kl", std::numeric_limits<double>::infinity()}, {"answer", "caf\xC3"}});
  EXPECT_TRUE(file.rows()[0]["kl"].is_null());
  EXPECT_EQ(file.rows()[0]["answer"], "caf\xEF\xBF\xBD");
  EXPECT_NE(file.find({{"answer", "caf\xC3"}}), nullptr);
}

TEST_F(ResultFiles, NamesABrokenLine) {
  for (const char* broken : {"{\"a\":1", "", "null", "[1]", "\x01"}) {
    write(header_.dump() + "\n{\"a\":1}\n" + broken + "\n{\"a\":2}\n");
    const std::string before = text();
    EXPECT_EQ(error(header_), path_ + ": line 3 is broken, expected a JSON object; remove it to go on") << broken;
    EXPECT_EQ(text(), before);
  }
}

TEST_F(ResultFiles, LeavesFilesOfOthersAlone) {
  for (const std::string other : {"GGUF\x03", "a novel\n", "{\"a\":1}", "[]\n", "\n"}) {
    write(other);
    EXPECT_NE(error(header_), "no error") << other;
    EXPECT_EQ(text(), other);
  }
}

TEST_F(ResultFiles, OneWriterAtATime) {
  ResultFile file(path_, header_);
  EXPECT_EQ(error(header_), path_ + ": another process is writing its results there");
}

TEST_F(ResultFiles, SaysWhyAPathCannotBeUsed) {
  path_ = (folder_ / "missing" / "rows.jsonl").string();
  EXPECT_EQ(error(header_), path_ + ": cannot be opened for writing: No such file or directory");
  path_ = folder_.string();
  EXPECT_EQ(error(header_), path_ + ": cannot be opened for writing: Is a directory");
  path_ = (folder_ / "fifo").string();
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_EQ(error(header_), path_ + ": is not a regular file, to which a later run could return");
  path_ = (folder_ / "rows.jsonl").string();
  EXPECT_NE(error(Json::array()).find("expected an object"), std::string::npos);
}

TEST_F(ResultFiles, TakesAHalfWrittenRowBack) {
  ResultFile file(path_, header_);
  file.add({{"a", 1}});
  const std::string before = text();
  // A limit on file sizes stands for a full disk.
  rlimit old = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {before.size() + 4, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = test::error_of([&] { file.add({{"a", "longer than four bytes"}}); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(message, path_ + ": cannot write the results: File too large");
  EXPECT_EQ(text(), before);
  EXPECT_EQ(file.rows().size(), 1u);
  file.add({{"a", 2}});
  EXPECT_EQ(text(), before + "{\"a\":2}\n");
}

}  // namespace
}  // namespace tidal
