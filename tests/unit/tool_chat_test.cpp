// Tools by the templates of real models: what they write, and how their answers are read.
#include "text/tool_chat.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <regex>

#include "core/error.h"
#include "text/chat_answer.h"

namespace tidal {
namespace {

using testing::HasSubstr;
using Json = nlohmann::json;

const std::filesystem::path kTemplates =
    std::filesystem::path(TIDAL_SOURCE_DIR) / ".deps" / "share" / "llama.cpp" / "templates";

ChatTool weather() {
  return {"get_weather", "The weather of a place",
          R"({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
              "required": ["city"]})"};
}

/// A conversation in which the tool was called once already.
std::vector<ChatMessage> history() {
  std::vector<ChatMessage> messages{{"system", "Be brief."}, {"user", "How is it in Paris?"}};
  ChatMessage call{"assistant", ""};
  call.tool_calls = {{"call_7", "get_weather", R"({"city": "Paris"})"}};
  ChatMessage result{"tool", "18 degrees"};
  result.tool_call_id = "call_7";
  result.name = "get_weather";
  messages.push_back(call);
  messages.push_back(result);
  return messages;
}

/// What the deltas of an answer make together, checked for their order.
ChatAnswer together(const std::vector<ChatDelta>& deltas) {
  using Kind = ChatDelta::Kind;
  ChatAnswer answer;
  for (const ChatDelta& delta : deltas) {
    if (delta.kind == Kind::Reasoning) answer.reasoning += delta.text;
    if (delta.kind == Kind::Content) answer.content += delta.text;
    if (delta.kind == Kind::CallBegins) {
      EXPECT_EQ(delta.call, answer.calls.size());
      EXPECT_NE(delta.call_id, "");
      answer.calls.push_back({delta.call_id, delta.text, ""});
    }
    if (delta.kind == Kind::CallArguments) answer.calls.at(delta.call).arguments += delta.text;
  }
  return answer;
}

ChatAnswer in_pieces(const std::shared_ptr<const AnswerFormat>& format, const std::string& text, size_t bytes) {
  ChatAnswerStream stream(format, "x");
  std::vector<ChatDelta> deltas;
  for (size_t begin = 0; begin < text.size(); begin += bytes) {
    for (ChatDelta& delta : stream.push(text.substr(begin, bytes))) deltas.push_back(std::move(delta));
  }
  for (ChatDelta& delta : stream.finish(true)) deltas.push_back(std::move(delta));
  return together(deltas);
}

struct Known {
  const char* file;
  const char* answer;  // what a model with this template writes
  const char* reasoning;
  const char* content;
  std::vector<const char*> cities;  // of its calls
};

void PrintTo(const Known& known, std::ostream* to) { *to << known.file; }

class ToolTemplates : public testing::TestWithParam<Known> {
 protected:
  void SetUp() override {
    const std::filesystem::path path = kTemplates / GetParam().file;
    if (!ChatTemplate::renders_jinja() || !std::filesystem::exists(path)) GTEST_SKIP() << "no templates";
    std::ifstream file(path);
    const std::string source{std::istreambuf_iterator<char>(file), {}};
    with_tools_.emplace(GetParam().file, nullptr, source, "");
  }

  std::optional<ToolTemplate> with_tools_;
};

TEST_P(ToolTemplates, ReadAnAnswerWholeAndByteByByteAlike) {
  const Known& known = GetParam();
  const ToolPrompt prompt = with_tools_->prompt({history(), {weather()}, ToolChoice::Auto, true});
  ChatAnswerStream whole(prompt.format, "x");
  whole.append(known.answer);
  whole.finish(true);
  const ChatAnswer& answer = whole.answer();
  EXPECT_EQ(answer.reasoning, known.reasoning);
  EXPECT_EQ(answer.content, known.content);
  ASSERT_EQ(answer.calls.size(), known.cities.size());
  for (size_t i = 0; i < answer.calls.size(); ++i) {
    EXPECT_EQ(answer.calls[i].name, "get_weather");
    EXPECT_EQ(Json::parse(answer.calls[i].arguments)["city"], known.cities[i]);
  }
  for (const size_t bytes : {1, 3, 7}) {
    const ChatAnswer pieces = in_pieces(prompt.format, known.answer, bytes);
    EXPECT_EQ(pieces.reasoning, answer.reasoning) << bytes;
    EXPECT_EQ(pieces.content, answer.content) << bytes;
    ASSERT_EQ(pieces.calls.size(), answer.calls.size()) << bytes;
    for (size_t i = 0; i < answer.calls.size(); ++i) {
      EXPECT_EQ(pieces.calls[i].name, answer.calls[i].name) << bytes;
      EXPECT_EQ(pieces.calls[i].arguments, answer.calls[i].arguments) << bytes;
    }
  }
}

TEST_P(ToolTemplates, WriteToolsCallsAndResults) {
  const ToolPrompt prompt = with_tools_->prompt({history(), {weather()}, ToolChoice::Auto});
  EXPECT_THAT(prompt.text, HasSubstr("get_weather"));
  EXPECT_THAT(prompt.text, HasSubstr("18 degrees"));
  EXPECT_THAT(prompt.text, HasSubstr("Paris"));
}

TEST_P(ToolTemplates, RequireACallByAGrammar) {
  const ToolPrompt prompt = with_tools_->prompt({history(), {weather()}, ToolChoice::Required});
  EXPECT_FALSE(prompt.lazy);
  EXPECT_THAT(prompt.grammar, HasSubstr("get_weather"));
  // No words before it, which the library would let come.
  EXPECT_FALSE(std::regex_search(prompt.grammar, std::regex(R"(root ::= [^\n]* until-[0-9]+\?? [^\n"()]*tool-call)")));
}

constexpr const char* kHermes =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\", \"days\": 2}}\n</tool_call>";

INSTANTIATE_TEST_SUITE_P(
    Known, ToolTemplates,
    testing::Values(
        Known{"Qwen-Qwen2.5-7B-Instruct.jinja", kHermes, "", "", {"Oslo"}},
        Known{"Qwen-Qwen2.5-7B-Instruct.jinja",
              "Just words, {\"no\": \"call\"}.",
              "",
              "Just words, {\"no\": \"call\"}.",
              {}},
        Known{
            "Qwen-Qwen2.5-7B-Instruct.jinja",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>\n"
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome \\\"é\\\" <x>\"}}\n</tool_call>",
            "",
            "",
            {"Oslo", "Rome \"é\" <x>"}},
        Known{"NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", kHermes, "", "", {"Oslo"}},
        Known{"Qwen-Qwen3-0.6B.jinja",
              "<think>\nThey ask of Oslo.\n</think>\n\n"
              "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>",
              "They ask of Oslo.",
              "",
              {"Oslo"}},
        Known{"Qwen-Qwen3-0.6B.jinja", "<think>\nHm.\n</think>\n\nIt rains.", "Hm.", "It rains.", {}},
        Known{"Qwen3-Coder.jinja",
              "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
              "",
              "",
              {"Oslo"}},
        Known{"meta-llama-Llama-3.1-8B-Instruct.jinja",
              "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Oslo\"}}",
              "",
              "",
              {"Oslo"}},
        Known{"mistralai-Mistral-Nemo-Instruct-2407.jinja",
              "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}, \"id\": \"123456789\"}]",
              "",
              "",
              {"Oslo"}},
        Known{"meetkai-functionary-medium-v3.1.jinja",
              "<function=get_weather>{\"city\": \"Oslo\"}</function>",
              "",
              "",
              {"Oslo"}},
        Known{"meetkai-functionary-medium-v3.2.jinja", "get_weather\n{\"city\": \"Oslo\"}", "", "", {"Oslo"}},
        Known{"llama-cpp-deepseek-r1.jinja",
              "Oslo, "
              "then.</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
              "{\"city\": \"Oslo\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
              "Oslo, then.",
              "",
              {"Oslo"}},
        // Without tools of their own: the common form.
        Known{"microsoft-Phi-3.5-mini-instruct.jinja", kHermes, "", "", {"Oslo"}},
        Known{"google-gemma-2-2b-it.jinja", kHermes, "", "", {"Oslo"}}));

TEST(PlainAnswers, AreToldFromThoughtsWhereATemplateHasThem) {
  const auto answers = [](const char* name, const std::string& variables) {
    std::ifstream file(kTemplates / name);
    const std::string source{std::istreambuf_iterator<char>(file), {}};
    return ToolTemplate(name, nullptr, source, "").plain_answers(variables);
  };
  if (!ChatTemplate::renders_jinja() || !std::filesystem::exists(kTemplates)) GTEST_SKIP() << "no templates";
  EXPECT_EQ(answers("Qwen-Qwen2.5-7B-Instruct.jinja", "").format, nullptr);
  const auto format = answers("Qwen-Qwen3-0.6B.jinja", "").format;
  ASSERT_NE(format, nullptr);
  const ChatAnswer pieces = in_pieces(format, "<think>\nIs it?\n</think>\n\nYes <b> it is.\n", 1);
  EXPECT_EQ(pieces.reasoning, "Is it?");
  EXPECT_EQ(pieces.content, "Yes <b> it is.\n");
}

/// One that reads nothing but nested brackets, and says how often it was asked.
class Counting final : public AnswerFormat {
 public:
  ChatAnswer parse(const std::string& text, bool partial) const override {
    ++count;
    bytes += text.size();
    if (!partial && text.ends_with("!")) fail("not of this format");
    return {text, "", {}};
  }
  mutable int64_t count = 0;
  mutable size_t bytes = 0;
};

TEST(ChatAnswerStream, DoesNotReadALongAnswerAnewForEveryPiece) {
  const auto format = std::make_shared<Counting>();
  ChatAnswerStream stream(format, "x");
  constexpr size_t kLength = 400'000;
  for (size_t i = 0; i < kLength; ++i) stream.push("a");
  stream.finish(true);
  EXPECT_EQ(stream.answer().content, std::string(kLength, 'a'));
  // 4096 times up to 4 KiB, then 64 * ln(400000 / 4096) = 293 times, each the whole text or less.
  EXPECT_LT(format->count, 4096 + 300);
  EXPECT_LT(format->bytes, 4096 * 4096 / 2 + 65 * kLength + 2 * kLength);
}

TEST(ChatAnswerStream, LeavesBracketsAloneThatNestTooDeeply) {
  const auto format = std::make_shared<Counting>();
  ChatAnswerStream stream(format, "x");
  stream.push("deep: " + std::string(100'000, '['));
  EXPECT_EQ(format->count, 0);
  stream.finish(true);
  EXPECT_LT(format->bytes, 1000u);
}

TEST(ChatAnswerStream, GivesWhatIsNotOfTheFormatAsItStands) {
  const auto format = std::make_shared<Counting>();
  ChatAnswerStream stream(format, "x");
  stream.append("well!");
  const ChatAnswer answer = together(stream.finish(true));
  EXPECT_EQ(answer.content, "well!");
}

TEST(ChatAnswerStream, HoldsWhiteSpaceBackUntilSomethingFollows) {
  ChatAnswerStream stream(std::make_shared<Counting>(), "x");
  EXPECT_TRUE(stream.push(" \n").empty());
  EXPECT_EQ(together(stream.push("a \n")).content, " \na");
  EXPECT_EQ(together(stream.push("b")).content, " \nb");
}

}  // namespace
}  // namespace tidal
