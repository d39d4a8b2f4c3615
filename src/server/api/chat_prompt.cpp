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

std::vector<ChatMessage> messages_from(const Fields& fields, const std::string& name) {
  const Json* given = fields.array(name);
  if (!given || given->empty()) refuse(name, "'{}': none given, expected at least one message", name);
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < given->size(); ++i) {
    const std::string path = fmt::format("{}[{}]", name, i);
    if (!(*given)[i].is_object()) refuse(path, "'{}': expected an object", path);
    const Fields message((*given)[i], path + ".");
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
      made.name = message.string("name").value_or(name_of_call(messages, made.tool_call_id));
    }
    messages.push_back(std::move(made));
  }
  return messages;
}

std::string chat_prompt(const Service& service, const std::vector<ChatMessage>& messages,
                        const std::string& variables) {
  if (!service.tokenizer().has_chat_template()) {
    refuse("messages",
           "this model has no chat template: use /v1/completions, or start the server with --chat-template");
  }
  try {
    return service.tokenizer().apply_chat_template(messages, true, variables);
  } catch (const Error& error) {
    refuse("messages", "{}", error.what());
  }
}

}  // namespace tidal::server
