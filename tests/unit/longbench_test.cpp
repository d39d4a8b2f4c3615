// LongBench: reading its files, its prompts, its scores.
#include "eval/longbench.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "support/error.h"

namespace tidal {
namespace {

const std::string kData = TIDAL_SOURCE_DIR "/tests/data/longbench";

std::string row(const std::string& dataset, const std::string& id) {
  return R"({"input":"q","context":"c","answers":["x"],"length":3,"dataset":")" + dataset +
         R"(","language":"en","all_classes":["x","y"],"_id":")" + id + "\"}\n";
}

class LongBenchFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("tidal_longbench_" + std::to_string(::getpid()) + "_" +
                                                        testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  LongBenchData read(const LongBenchOptions& options = {}) const { return read_longbench(folder_.string(), options); }
  std::string error(const LongBenchOptions& options = {}) const {
    return test::error_of([&] { read(options); });
  }

  std::filesystem::path folder_;
};

TEST(LongBench, ReadsItsFilesInTheBenchmarksOrder) {
  const LongBenchData data = read_longbench(kData, {});
  EXPECT_TRUE(data.errors.empty());
  EXPECT_TRUE(data.notes.empty());
  ASSERT_EQ(data.examples.size(), 4u);
  EXPECT_EQ(data.examples[0].id, "lake-1");
  EXPECT_EQ(data.examples[0].line, 1);
  EXPECT_EQ(data.examples[0].length, 39);
  EXPECT_EQ(data.examples[0].answers.size(), 2u);
  EXPECT_TRUE(data.examples[0].classes.empty());
  EXPECT_EQ(data.examples[1].id, "lake-2");
  EXPECT_EQ(data.examples[2].task->name, "trec");
  EXPECT_EQ(data.examples[2].classes.size(), 4u);
  EXPECT_EQ(data.examples[3].file, "repobench-p");
}

TEST(LongBench, ReadsTheTasksAskedFor) {
  const LongBenchData data = read_longbench(kData, {.tasks = {"trec"}});
  ASSERT_EQ(data.examples.size(), 1u);
  EXPECT_EQ(data.examples[0].id, "type-1");
  EXPECT_EQ(test::error_of([] {
              read_longbench(kData, {.tasks = {"trec", "qmsum", "lcc"}});
            }),
            kData + ": has no qmsum.jsonl, lcc.jsonl");
  const std::string unknown = test::error_of([] { read_longbench(kData, {.tasks = {"squad"}}); });
  EXPECT_EQ(unknown.find("LongBench task 'squad' is not known, use some of narrativeqa, qasper, "), 0u) << unknown;
  EXPECT_EQ(test::error_of([] {
              read_longbench(kData, {.tasks = {"vcsum", "trec", "dureader"}});
            }),
            "LongBench task vcsum, dureader: not scored, the benchmark cuts Chinese text into words with a Python "
            "package (jieba)");
}

TEST_F(LongBenchFolder, KeepsTheRowsBeforeABrokenLine) {
  write("qasper.jsonl", row("qasper", "1") + row("qasper", "2") + "{\"input\": \"cut\n" + row("qasper", "4"));
  write("lcc.jsonl", row("lcc", "5"));
  const LongBenchData data = read();
  ASSERT_EQ(data.examples.size(), 3u);
  EXPECT_EQ(data.examples[1].id, "2");
  EXPECT_EQ(data.examples[2].id, "5");
  ASSERT_EQ(data.errors.size(), 1u);
  EXPECT_EQ(data.errors[0], path("qasper.jsonl") + ": line 3: is not JSON; the 2 rows before it stay");
}

TEST_F(LongBenchFolder, NamesAMissingOrWrongField) {
  const std::string good = row("trec", "1");
  for (const std::string name :
       {"input", "context", "answers", "length", "dataset", "language", "all_classes", "_id"}) {
    std::string bad = good;
    bad.replace(bad.find("\"" + name + "\""), name.size() + 2, "\"other\"");
    write("trec.jsonl", good + bad);
    const LongBenchData data = read();
    EXPECT_EQ(data.examples.size(), 1u) << name;
    ASSERT_EQ(data.errors.size(), 1u) << name;
    EXPECT_EQ(data.errors[0],
              path("trec.jsonl") + ": line 2: field '" + name + "' is missing; the 1 row before it stays");
  }
  const std::pair<std::string, std::string> wrong[] = {{R"(["x"],"length")", "field 'answers' is not a list of texts"},
                                                       {R"(["x","y"])", "field 'all_classes' is not a list of texts"},
                                                       {R"("q")", "field 'input' is number, expected text"},
                                                       {"3", "field 'length' is -1, expected a count"}};
  const std::string values[] = {R"([1],"length")", "{}", "7", "-1"};
  for (size_t i = 0; i < std::size(wrong); ++i) {
    std::string bad = good;
    bad.replace(bad.find(wrong[i].first), wrong[i].first.size(), values[i]);
    write("trec.jsonl", bad);
    const LongBenchData data = read();
    ASSERT_EQ(data.errors.size(), 1u);
    EXPECT_EQ(data.errors[0], path("trec.jsonl") + ": line 1: " + wrong[i].second + "; the 0 rows before it stay");
  }
  std::string empty = good;
  empty.replace(empty.find(R"(["x","y"])"), 9, "[]");
  write("trec.jsonl", empty + "[]\n");
  EXPECT_NE(read().errors.at(0).find("'all_classes' is empty"), std::string::npos);
  write("trec.jsonl", "[]\n");
  EXPECT_NE(read().errors.at(0).find("line 1: is array, expected a JSON object"), std::string::npos);
}

TEST_F(LongBenchFolder, RefusesBytesThatAreNotUtf8) {
  std::string bad = row("qasper", "1");
  bad.replace(bad.find("\"q\""), 3, "\"\xC3\"");
  write("qasper.jsonl", bad);
  EXPECT_EQ(read().errors.at(0), path("qasper.jsonl") + ": line 1: is not JSON; the 0 rows before it stay");
}

TEST_F(LongBenchFolder, SkipsEmptyLinesAndReportsEmptyFiles) {
  write("qasper.jsonl", "\n" + row("qasper", "1") + "\r\n\n");
  write("lcc.jsonl", "\n");
  const LongBenchData data = read();
  ASSERT_EQ(data.examples.size(), 1u);
  EXPECT_EQ(data.examples[0].line, 2);
  ASSERT_EQ(data.errors.size(), 1u);
  EXPECT_EQ(data.errors[0], path("lcc.jsonl") + ": has no rows");
}

TEST_F(LongBenchFolder, SaysWhatItDoesNotRead) {
  write("qasper.jsonl", row("qasper_new", "1"));
  write("qasper_e.jsonl", row("qasper", "2"));
  write("dureader.jsonl", row("dureader", "3"));
  write("vcsum.jsonl", "");
  write("notes.jsonl", "");
  write("README.md", "");
  const LongBenchData data = read();
  ASSERT_EQ(data.examples.size(), 1u);
  EXPECT_EQ(data.examples[0].id, "1");
  EXPECT_EQ(data.notes,
            (std::vector<std::string>{
                "dureader, vcsum: not scored, the benchmark cuts Chinese text into words with a Python package (jieba)",
                folder_.string() + ": no tasks of LongBench: notes.jsonl",
                path("qasper.jsonl") + ": its rows are of 'qasper_new', scored as qasper"}));
  const LongBenchData extended = read({.extended = true});
  ASSERT_EQ(extended.examples.size(), 1u);
  EXPECT_EQ(extended.examples[0].id, "2");
  EXPECT_EQ(extended.examples[0].file, "qasper_e");
  EXPECT_EQ(extended.examples[0].task->name, "qasper");
}

TEST_F(LongBenchFolder, RefusesFoldersWithoutATask) {
  EXPECT_EQ(error(), folder_.string() + ": has no file of a LongBench task that can be scored, e.g. qasper.jsonl");
  EXPECT_EQ(error({.extended = true}),
            folder_.string() + ": has no file of a LongBench-E task that can be scored, e.g. qasper_e.jsonl");
  write("vcsum.jsonl", "");
  EXPECT_NE(error().find("e.g. qasper.jsonl; vcsum: not scored"), std::string::npos) << error();
  const std::string missing = path("missing");
  EXPECT_EQ(test::error_of([&] { read_longbench(missing, {}); }),
            missing + ": is not a folder, expected one with LongBench's *.jsonl");
  EXPECT_EQ(test::error_of([&] { read_longbench(path("vcsum.jsonl"), {}); }),
            path("vcsum.jsonl") + ": is not a folder, expected one with LongBench's *.jsonl");
}

TEST(LongBench, TasksAreWhole) {
  std::set<std::string_view> names;
  for (const LongBenchTask& task : longbench_tasks()) {
    EXPECT_TRUE(names.insert(task.name).second) << task.name;
    EXPECT_EQ(find_longbench_task(task.name), &task);
    EXPECT_GT(task.max_new_tokens, 0);
    const size_t context = task.prompt.find("{context}");
    EXPECT_NE(context, std::string_view::npos) << task.name;
    EXPECT_EQ(task.prompt.find("{context}", context + 1), std::string_view::npos) << task.name;
    EXPECT_EQ(std::count(task.prompt.begin(), task.prompt.end(), '{'),
              task.prompt.find("{input}") == std::string_view::npos ? 1 : 2)
        << task.name;
    EXPECT_EQ(task.metric == LongBenchMetric::Retrieval, !task.paragraph.empty());
  }
  // With the three that are refused the benchmark has 21.
  EXPECT_EQ(names.size() + longbench_refused_tasks().size(), 21u);
  for (const std::string_view name : longbench_refused_tasks()) EXPECT_EQ(find_longbench_task(name), nullptr);
  EXPECT_EQ(find_longbench_task(""), nullptr);
  // pred.py: no chat template for these; eval.py: only the first line of these.
  for (const LongBenchTask& task : longbench_tasks()) {
    const std::set<std::string_view> plain = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"};
    EXPECT_EQ(task.chat, plain.count(task.name) == 0) << task.name;
    const std::set<std::string_view> first = {"trec", "triviaqa", "samsum", "lsht"};
    EXPECT_EQ(task.first_line, first.count(task.name) == 1) << task.name;
  }
}

TEST(LongBench, PutsContextAndInputIntoThePrompt) {
  const LongBenchData data = read_longbench(kData, {});
  EXPECT_EQ(longbench_prompt_text(data.examples[2]),
            "Please determine the type of the question below. Here are some examples of questions.\n\n" +
                data.examples[2].context + "\n" + data.examples[2].input);
  EXPECT_EQ(longbench_prompt_text(data.examples[3]),
            "Please complete the code given below. \n# file: shapes.py\nSIDES = 4\ndef area(width, height):\n    Next "
            "line of code:\n");
  LongBenchExample braces = data.examples[3];
  braces.context = "{input}{context}{}{{";
  braces.input = "{context}";
  EXPECT_EQ(longbench_prompt_text(braces),
            "Please complete the code given below. \n{input}{context}{}{{{context}Next line of code:\n");
}

TEST(LongBench, TakesTheBestAnswerAndTheFirstLine) {
  const LongBenchData data = read_longbench(kData, {});
  EXPECT_DOUBLE_EQ(longbench_score(data.examples[0], "The echo sounder"), 1);
  // Against "echo sounder" 2/4 and 2/2: 2/3; against "echo sounder in autumn" 4/4: 1.
  EXPECT_DOUBLE_EQ(longbench_score(data.examples[0], "autumn, in echo sounder"), 1);
  EXPECT_EQ(longbench_score(data.examples[0], ""), 0);
  EXPECT_EQ(longbench_score(data.examples[2], "\n Distance, linear measure\nQuestion: Individual"), 1);
  EXPECT_EQ(longbench_score(data.examples[2], "Individual\nDistance, linear measure"), 0);
  EXPECT_EQ(longbench_score(data.examples[3], "# area\nreturn width * height"), 1);
  EXPECT_EQ(longbench_score(data.examples[3], "return width * height\nreturn 0"), 1);
  LongBenchExample none = data.examples[0];
  none.answers.clear();
  EXPECT_EQ(longbench_score(none, "anything"), 0);
  none.task = find_longbench_task("passage_retrieval_en");
  none.answers = {"seven"};
  EXPECT_EQ(
      test::error_of([&] { longbench_score(none, "7"); }),
      "qasper.jsonl, line 1: the reference answer 'seven' names no paragraph, expected 'Paragraph ' and a number");
}

TEST(LongBench, GroupsByLength) {
  EXPECT_STREQ(longbench_length_group(0), "0-4k");
  EXPECT_STREQ(longbench_length_group(3999), "0-4k");
  EXPECT_STREQ(longbench_length_group(4000), "4-8k");
  EXPECT_STREQ(longbench_length_group(7999), "4-8k");
  EXPECT_STREQ(longbench_length_group(8000), "8k+");
}

class LongBenchPrompt : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("TIDAL_MODELS");
    const std::string path = (folder ? folder : std::string(TIDAL_SOURCE_DIR "/models")) + "/smollm2-135m.gguf";
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is missing; run tools/get_model.sh smollm2-135m";
    tokenizer_ = std::make_unique<Tokenizer>(path);
    data_ = read_longbench(kData, {});
  }
  std::string text(const std::vector<Token>& tokens) const {
    std::string all;
    for (const Token token : tokens) all += tokenizer_->piece(token, true);
    return all;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  LongBenchData data_;
};

TEST_F(LongBenchPrompt, IsWholeWithinTheLimit) {
  const LongBenchExample& code = data_.examples[3];
  const auto tokens = longbench_prompt(code, *tokenizer_, 4096);
  EXPECT_EQ(tokens, tokenizer_->encode(longbench_prompt_text(code), true, true));
  EXPECT_EQ(longbench_prompt(code, *tokenizer_, static_cast<int>(tokens.size())), tokens);
}

TEST_F(LongBenchPrompt, GoesThroughTheChatTemplateWhereThePromptIsNotContinued) {
  ASSERT_TRUE(tokenizer_->has_chat_template());
  EXPECT_FALSE(longbench_uses_chat(*data_.examples[2].task, *tokenizer_));
  EXPECT_TRUE(longbench_uses_chat(*data_.examples[0].task, *tokenizer_));
  const std::string asked = text(longbench_prompt(data_.examples[0], *tokenizer_, 4096));
  EXPECT_NE(asked.find("<|im_start|>user\n" + longbench_prompt_text(data_.examples[0]) + "<|im_end|>"),
            std::string::npos)
      << asked;
  EXPECT_TRUE(asked.ends_with("<|im_start|>assistant\n")) << asked;
}

TEST_F(LongBenchPrompt, IsCutInTheMiddle) {
  LongBenchExample example = data_.examples[3];
  example.context.clear();
  for (int i = 0; i < 300; ++i) example.context += "line " + std::to_string(i) + "\n";
  const std::string whole = longbench_prompt_text(example);
  const auto all = tokenizer_->encode(whole, true, true);
  ASSERT_GT(all.size(), 200u);
  for (const int limit : {101, 100, 2}) {
    const size_t half = static_cast<size_t>(limit) / 2;
    const std::string expected =
        tokenizer_->decode(std::span(all).first(half)) + tokenizer_->decode(std::span(all).last(half));
    const std::string cut = tokenizer_->decode(longbench_prompt(example, *tokenizer_, limit));
    EXPECT_EQ(cut, expected);
    EXPECT_TRUE(whole.starts_with(cut.substr(0, half)));
  }
  EXPECT_EQ(test::error_of([&] { longbench_prompt(example, *tokenizer_, 1); }),
            "LongBench: a prompt of at most 1 tokens, expected at least 2");
  EXPECT_NE(test::error_of([&] { longbench_prompt(example, *tokenizer_, -5); }), "no error");
}

TEST_F(LongBenchPrompt, SurvivesCutsInsideCharacters) {
  // Three-byte characters that this vocabulary divides: some limit cuts one.
  LongBenchExample example = data_.examples[3];
  example.context.clear();
  for (int i = 0; i < 40; ++i) example.context += "\xE9\xBE\x98\xF0\x9F\xA6\xA6";
  size_t replaced = 0;
  for (int limit = 20; limit < 60; limit += 2) {
    const std::string cut = tokenizer_->decode(longbench_prompt(example, *tokenizer_, limit));
    if (cut.find("\xEF\xBF\xBD") != std::string::npos) ++replaced;
  }
  EXPECT_GT(replaced, 0u);
}

}  // namespace
}  // namespace tidal
