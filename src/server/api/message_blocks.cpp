#include "server/api/message_blocks.h"

#include "server/api/chat_prompt.h"
#include "server/error.h"

namespace tidal::server {
namespace {

void add_line(std::string& text, const std::string& line) {
  if (!text.empty()) text += '\n';
  text += line;
}

/// A message of blocks: results of tools become messages of their own, before what the user says beside them.
void add_blocks(std::vector<ChatMessage>& messages, const std::string& role, const Json& blocks,
                const std::string& path) {
  ChatMessage message{role, ""};
  bool said = blocks.empty();
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string at = fmt::format("{}[{}]", path, i);
    if (!blocks[i].is_object()) refuse(at, "'{}': expected an object", at);
    const Fields block(blocks[i], at + ".");
    const std::string type = block.string("type").value_or("text");
    if (role == "user" && type == "tool_result") {
      ChatMessage result{"tool", ""};
      if (const Json* content = block.find("content")) result.content = content_text(*content, block.path("content"));
      if (block.boolean("is_error").value_or(false)) result.content.insert(0, "error: ");
      result.tool_call_id = block.string("tool_use_id").value_or("");
      result.name = name_of_call(messages, result.tool_call_id);
      messages.push_back(std::move(result));
      continue;
    }
    said = true;
    if (role == "assistant" && type == "tool_use") {
      ChatToolCall call{block.string("id").value_or(""), block.string("name").value_or(""), ""};
      if (call.name.empty()) refuse(block.path("name"), "'{}': none given", block.path("name"));
      call.arguments = call_arguments(block.object("input"), block.path("input"));
      message.tool_calls.push_back(std::move(call));
    } else if (role == "assistant" && type == "thinking") {
      add_line(message.reasoning, block.string("thinking").value_or(""));
    } else if (role == "assistant" && type == "redacted_thinking") {
      continue;
    } else {
      add_line(message.content, content_text(Json::array({blocks[i]}), path));
    }
  }
  if (said) messages.push_back(std::move(message));
}

}  // namespace

std::vector<ChatMessage> block_messages_from(const Fields& fields) {
  const Json* given = fields.array("messages");
  if (!given || given->empty()) refuse("messages", "'messages': none given, expected at least one message");
  std::vector<ChatMessage> messages;
  if (const Json* system = fields.find("system")) messages.push_back({"system", content_text(*system, "system")});
  for (size_t i = 0; i < given->size(); ++i) {
    const std::string path = fmt::format("messages[{}]", i);
    if (!(*given)[i].is_object()) refuse(path, "'{}': expected an object", path);
    const Fields message((*given)[i], path + ".");
    const std::string role = message.string("role").value_or("");
    if (role != "user" && role != "assistant" && role != "system") {
      refuse(message.path("role"), "'{}': '{}' given, expected user, assistant or system", message.path("role"),
             role.substr(0, 60));
    }
    const Json* content = message.find("content");
    if (content && content->is_array()) {
      add_blocks(messages, role, *content, message.path("content"));
    } else {
      messages.push_back({role, content ? content_text(*content, message.path("content")) : ""});
    }
  }
  return messages;
}

ChatOptions block_options_from(const Fields& fields) {
  ChatOptions options;
  const Json* tools = fields.array("tools");
  for (size_t i = 0; tools && i < tools->size(); ++i) {
    const std::string path = fmt::format("tools[{}]", i);
    if (!(*tools)[i].is_object()) refuse(path, "'{}': expected an object", path);
    const Fields tool((*tools)[i], path + ".");
    if (const std::string type = tool.string("type").value_or("custom"); type != "custom") {
      refuse(tool.path("type"), "'{}': '{}' given, this server has no tools of its own, expected custom",
             tool.path("type"), type.substr(0, 60));
    }
    add_tool(options, {tool.string("name").value_or(""), tool.string("description").value_or(""), "{}"},
             tool.object("input_schema"), path);
  }
  const Json* given = fields.object("tool_choice");
  if (options.tools.empty()) {
    if (given && given->value("type", Json()) != "auto" && given->value("type", Json()) != "none") {
      refuse("tool_choice", "'tool_choice': given without tools");
    }
    return options;
  }
  options.choice = ToolChoice::Auto;
  if (!given) return options;
  const Fields choice(*given, "tool_choice.");
  const std::string type = choice.string("type").value_or("");
  if (type == "any") {
    options.choice = ToolChoice::Required;
  } else if (type == "tool") {
    require_tool(options, choice.string("name").value_or(""), "tool_choice.name");
  } else if (type == "none") {
    options.choice = ToolChoice::None;
    options.tools.clear();
  } else if (type != "auto") {
    refuse("tool_choice.type", "'tool_choice.type': '{}' given, expected auto, any, tool or none", type.substr(0, 60));
  }
  if (choice.boolean("disable_parallel_tool_use").value_or(false)) options.parallel = false;
  return options;
}

}  // namespace tidal::server
