#include "server/api/response_input.h"

#include "server/api/chat_prompt.h"
#include "server/api/tools.h"
#include "server/error.h"

namespace tidal::server {
namespace {

/// The text of a reasoning item: what was thought, or else its summary.
std::string thoughts_of(const Fields& item) {
  std::string text;
  for (const char* name : {"content", "summary"}) {
    const Json* parts = item.array(name);
    for (size_t i = 0; parts && i < parts->size(); ++i) {
      const std::string path = fmt::format("{}[{}]", item.path(name), i);
      if (!(*parts)[i].is_object()) refuse(path, "'{}': expected an object", path);
      if (!text.empty()) text += '\n';
      text += Fields((*parts)[i], path + ".").string("text").value_or("");
    }
    if (!text.empty()) break;
  }
  return text;
}

/// Items one by one, and the messages that they make.
class Conversation {
 public:
  explicit Conversation(const Fields& fields) {
    if (const auto instructions = fields.string("instructions")) messages.push_back({"system", *instructions});
  }

  void add(const Fields& item) {
    const std::string type = item.string("type").value_or("message");
    if (type == "message") {
      add_message(message_from(item, messages));
    } else if (type == "reasoning") {
      // Thoughts come first, so these begin another answer than one that has words or calls.
      const bool begun = !messages.empty() && !(messages.back().content.empty() && messages.back().tool_calls.empty());
      if (begun) messages.push_back({"assistant", ""});
      answer().reasoning += thoughts_of(item);
    } else if (type == "function_call") {
      answer().tool_calls.push_back(call_from(item.string("call_id").value_or(""), item));
    } else if (type == "function_call_output") {
      add_output(item);
    } else {
      refuse(item.path("type"), "'{}': '{}' given, expected message, function_call, function_call_output or reasoning",
             item.path("type"), type.substr(0, 60));
    }
  }

  std::vector<ChatMessage> messages;

 private:
  /// The assistant's message that items of an answer belong to.
  ChatMessage& answer() {
    if (messages.empty() || messages.back().role != "assistant") messages.push_back({"assistant", ""});
    return messages.back();
  }

  void add_message(ChatMessage message) {
    const bool joins = message.role == "assistant" && !messages.empty() && messages.back().role == "assistant" &&
                       messages.back().content.empty() && messages.back().tool_calls.empty();
    if (joins) {
      message.reasoning.insert(0, messages.back().reasoning);
      messages.back() = std::move(message);
    } else {
      messages.push_back(std::move(message));
    }
  }

  void add_output(const Fields& item) {
    ChatMessage result{"tool", ""};
    result.tool_call_id = item.string("call_id").value_or("");
    result.name = name_of_call(messages, result.tool_call_id);
    if (result.name.empty()) refuse(item.path("call_id"), "'{}': no call before it has this id", item.path("call_id"));
    const Json* output = item.find("output");
    if (!output) refuse(item.path("output"), "'{}': none given, expected a string", item.path("output"));
    result.content = content_text(*output, item.path("output"));
    messages.push_back(std::move(result));
  }
};

}  // namespace

std::vector<ChatMessage> response_messages_from(const Fields& fields) {
  Conversation conversation(fields);
  const Json* input = fields.find("input");
  if (!input) refuse("input", "'input': none given, expected a string or items");
  if (input->is_string()) {
    conversation.messages.push_back({"user", text_of(*input, "input")});
    return std::move(conversation.messages);
  }
  if (!fields.array("input") || input->empty()) refuse("input", "'input': none given, expected at least one item");
  for (size_t i = 0; i < input->size(); ++i) {
    const std::string path = fmt::format("input[{}]", i);
    if (!(*input)[i].is_object()) refuse(path, "'{}': expected an object", path);
    conversation.add(Fields((*input)[i], path + "."));
  }
  return std::move(conversation.messages);
}

}  // namespace tidal::server
