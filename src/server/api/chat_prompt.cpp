#include "server/api/chat_prompt.h"

#include <algorithm>

#include "core/error.h"
#include "server/api/tools.h"
#include "server/error.h"

namespace tidal::server {

std::string name_of_call(const std::vector<ChatMessage>& messages, const std::string& id) {
  for (auto message = messages.rbegin(); message != messages.rend() && !id.empty(); ++message) {
    for (const ChatToolCall& call : message->tool_calls) {
      if (call.id == id) return call.name;
    }
  }
  return "";
}

std::string content_text(const Json& content, const std::string& path) {
  if (content.is_string()) return text_of(content, path);
  if (!content.is_array()) refuse(path, "'{}': expected a string or an array of parts", path);
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string name = fmt::format("{}[{}]", path, i);
    if (!content[i].is_object()) refuse(name, "'{}': expected an object", name);
    const Fields part(content[i], name + ".");
    const std::string type = part.string("type").value_or("text");
    if (type != "text" && type != "input_text" && type != "output_text") {
      refuse(part.path("type"), "'{}': a part of type '{}' given, this model reads text alone", part.path("type"),
             type.substr(0, 60));
    }
    if (!text.empty()) text += '\n';
    text += part.string("text").value_or("");
  }
  return text;
}

ChatMessage message_from(const Fields& message, const std::vector<ChatMessage>& before) {
  std::string role = message.string("role").value_or("");
  if (role == "developer") role = "system";
  constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};
  if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles)) {
    refuse(message.path("role"), "'{}': '{}' given, expected system, developer, user, assistant or tool",
           message.path("role"), role.substr(0, 60));
  }
  const Json* content = message.find("content");
  ChatMessage made{std::move(role), content ? content_text(*content, message.path("content")) : ""};
  if (made.role == "assistant") {
    made.tool_calls = calls_from(message);
    made.reasoning = message.string("reasoning_content").value_or("");
  } else if (made.role == "tool") {
    made.tool_call_id = message.string("tool_call_id").value_or("");
    made.name = message.string("name").value_or(name_of_call(before, made.tool_call_id));
  }
  return made;
}

std::vector<ChatMessage> messages_from(const Fields& fields) {
  const Json* given = fields.array("messages");
  if (!given || given->empty()) refuse("messages", "'messages': none given, expected at least one message");
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < given->size(); ++i) {
    const std::string path = fmt::format("messages[{}]", i);
    if (!(*given)[i].is_object()) refuse(path, "'{}': expected an object", path);
    messages.push_back(message_from(Fields((*given)[i], path + "."), messages));
  }
  return messages;
}

std::string chat_prompt(const Service& service, const std::vector<ChatMessage>& messages, const std::string& variables,
                        bool begin_answer) {
  if (!service.tokenizer().has_chat_template()) {
    refuse("messages",
           "this model has no chat template: use /v1/completions, or start the server with --chat-template");
  }
  try {
    const Tokenizer& tokenizer = service.tokenizer();
    const ChatMessage& last = messages.back();
    if (begin_answer && messages.size() > 1 && last.role == "assistant" && last.tool_calls.empty()) {
      // What the assistant has said already is the beginning of its answer.
      const std::vector<ChatMessage> before(messages.begin(), messages.end() - 1);
      return tokenizer.apply_chat_template(before, true, variables) + last.content;
    }
    return tokenizer.apply_chat_template(messages, begin_answer, variables);
  } catch (const Error& error) {
    refuse("messages", "{}", error.what());
  }
}

}  // namespace tidal::server
