#include "server/api/tools.h"

#include <algorithm>
#include <cctype>

#include "core/error.h"
#include "server/api/chat_prompt.h"
#include "server/error.h"

namespace tidal::server {
namespace {

constexpr size_t kMostTools = 128;
constexpr size_t kMostBytes = size_t{64} << 10;
constexpr size_t kMostBytesOfAll = size_t{256} << 10;
constexpr size_t kMostName = 64;
constexpr size_t kMostMessages = 4096;  // beside tools

void check_name(const std::string& name, const std::string& path) {
  const auto usual = [](unsigned char byte) { return std::isalnum(byte) || byte == '_' || byte == '-' || byte == '.'; };
  if (name.empty() || name.size() > kMostName || !std::all_of(name.begin(), name.end(), usual)) {
    refuse(path, "'{}': '{}' given, expected up to {} letters, digits, _, - and .", path, name.substr(0, 80),
           kMostName);
  }
}

void read_choice(const Fields& fields, ToolForm form, ChatOptions& options) {
  const Json* given = fields.find("tool_choice");
  const std::string path = fields.path("tool_choice");
  if (options.tools.empty()) {
    if (given && *given != "none" && *given != "auto") refuse(path, "'{}': given without tools", path);
    return;
  }
  options.choice = ToolChoice::Auto;
  if (!given || *given == "auto") return;
  if (*given == "required") {
    options.choice = ToolChoice::Required;
  } else if (*given == "none") {
    options.choice = ToolChoice::None;
    options.tools.clear();
  } else if (form == ToolForm::Flat && given->is_object() && given->value("type", Json()) == "function") {
    require_tool(options, Fields(*given, path + ".").string("name").value_or(""), path + ".name");
  } else if (given->is_object() && given->value("type", Json()) == "function") {
    const Json* function = Fields(*given, path + ".").object("function");
    if (!function) refuse(path + ".function", "'{}.function': none given, expected an object with a name", path);
    require_tool(options, Fields(*function, path + ".function.").string("name").value_or(""), path + ".function.name");
  } else {
    refuse(path, "'{}': expected none, auto, required or a function", path);
  }
}

}  // namespace

void add_tool(ChatOptions& options, ChatTool tool, const Json* parameters, const std::string& path) {
  if (options.tools.size() >= kMostTools) refuse(path, "'{}': expected at most {} tools", path, kMostTools);
  check_name(tool.name, path + ".name");
  for (const ChatTool& other : options.tools) {
    if (other.name == tool.name) refuse(path + ".name", "'{}.name': '{}' is there twice", path, tool.name);
  }
  if (parameters) tool.parameters = dump(*parameters);
  const auto size = [](const ChatTool& one) { return one.description.size() + one.parameters.size(); };
  size_t all = size(tool);
  if (all > kMostBytes) refuse(path, "'{}': it has {} bytes, expected at most {}", path, all, kMostBytes);
  for (const ChatTool& other : options.tools) all += size(other);
  if (all > kMostBytesOfAll) refuse(path, "'{}': the tools have over {} bytes together", path, kMostBytesOfAll);
  options.tools.push_back(std::move(tool));
}

void require_tool(ChatOptions& options, const std::string& name, const std::string& path) {
  std::erase_if(options.tools, [&](const ChatTool& tool) { return tool.name != name; });
  if (options.tools.empty()) refuse(path, "'{}': there is no tool '{}'", path, name.substr(0, 80));
  options.choice = ToolChoice::Required;
}

ChatOptions chat_options_from(const Fields& fields, ToolForm form) {
  ChatOptions options;
  if (const Json* tools = fields.array("tools")) {
    for (size_t i = 0; i < tools->size(); ++i) {
      std::string path = fmt::format("{}[{}]", fields.path("tools"), i);
      if (!(*tools)[i].is_object()) refuse(path, "'{}': expected an object", path);
      const Fields tool((*tools)[i], path + ".");
      if (const std::string type = tool.string("type").value_or(""); type != "function") {
        refuse(tool.path("type"), "'{}': '{}' given, expected function", tool.path("type"), type.substr(0, 60));
      }
      const Json* object = &(*tools)[i];
      if (form == ToolForm::Nested) {
        path = tool.path("function");
        object = tool.object("function");
        if (!object) refuse(path, "'{}': none given, expected an object", path);
      }
      const Fields function(*object, path + ".");
      add_tool(options, {function.string("name").value_or(""), function.string("description").value_or(""), "{}"},
               function.object("parameters"), path);
    }
  }
  read_choice(fields, form, options);
  options.parallel = fields.boolean("parallel_tool_calls");
  const std::optional<bool> begins = fields.boolean("add_generation_prompt");
  const bool continues = fields.boolean("continue_final_message").value_or(false);
  if (continues && begins.value_or(false)) {
    refuse(fields.path("continue_final_message"), "'{}': give either this or add_generation_prompt, not both",
           fields.path("continue_final_message"));
  }
  options.begin_answer = continues || begins.value_or(true);
  if (const Json* variables = fields.object("chat_template_kwargs"); variables && !variables->empty()) {
    options.variables = dump(*variables);
  }
  const std::string format = fields.string("reasoning_format").value_or("auto");
  if (format != "auto" && format != "none" && format != "deepseek") {
    refuse(fields.path("reasoning_format"), "'{}': '{}' given, expected none, auto or deepseek",
           fields.path("reasoning_format"), format.substr(0, 60));
  }
  options.reasoning = format != "none";
  return options;
}

std::string call_arguments(const Json* given, const std::string& path) {
  if (!given) return "{}";
  if (given->is_object()) return dump(*given);
  std::string text = text_of(*given, path);
  if (text.empty()) return "{}";
  if (!is_json(text)) refuse(path, "'{}': it is not JSON of at most 64 levels", path);
  return text;
}

ChatToolCall call_from(std::string id, const Fields& function) {
  ChatToolCall made{std::move(id), function.string("name").value_or(""), ""};
  check_name(made.name, function.path("name"));
  made.arguments = call_arguments(function.find("arguments"), function.path("arguments"));
  return made;
}

std::vector<ChatToolCall> calls_from(const Fields& message) {
  std::vector<ChatToolCall> calls;
  const Json* given = message.array("tool_calls");
  if (given && given->size() > kMostTools) {
    refuse(message.path("tool_calls"), "'{}': expected at most {}", message.path("tool_calls"), kMostTools);
  }
  for (size_t i = 0; given && i < given->size(); ++i) {
    const std::string path = fmt::format("{}[{}]", message.path("tool_calls"), i);
    if (!(*given)[i].is_object()) refuse(path, "'{}': expected an object", path);
    const Fields call((*given)[i], path + ".");
    const Json* object = call.object("function");
    if (!object) refuse(call.path("function"), "'{}': none given, expected an object", call.path("function"));
    calls.push_back(call_from(call.string("id").value_or(""), Fields(*object, call.path("function."))));
  }
  return calls;
}

namespace {

ToolPrompt tool_prompt(const Service& service, std::vector<ChatMessage> messages, const ChatOptions& options) {
  const Tokenizer& tokenizer = service.tokenizer();
  if (!tokenizer.has_chat_template()) chat_prompt(service, messages);  // says so
  // libllama-common takes time with their square: two seconds for as many.
  if (messages.size() > kMostMessages) {
    refuse("messages", "'messages': {} given beside tools, expected at most {}", messages.size(), kMostMessages);
  }
  if (!options.begin_answer) {
    refuse("add_generation_prompt", "'add_generation_prompt': false given beside tools, expected none of them");
  }
  try {
    return tokenizer.tool_template().prompt(
        {std::move(messages), options.tools, options.choice, options.parallel, options.variables, options.reasoning});
  } catch (const Error& error) {
    refuse("tools", "{}", error.what());
  }
}

}  // namespace

std::string chat_text(const Service& service, std::vector<ChatMessage> messages, const ChatOptions& options) {
  if (!options.tools.empty()) return tool_prompt(service, std::move(messages), options).text;
  return chat_prompt(service, messages, options.variables, options.begin_answer);
}

std::shared_ptr<const AnswerFormat> prepare_chat(const Service& service, std::vector<ChatMessage> messages,
                                                 const ChatOptions& options, Generation& generation) {
  const Tokenizer& tokenizer = service.tokenizer();
  const auto keep = [&](const std::vector<std::string>& texts) {
    for (const std::string& text : texts) {
      const std::vector<Token> tokens = tokenizer.encode(text, false, true);
      if (tokens.size() == 1) generation.kept_tokens.push_back(tokens[0]);
    }
  };
  if (options.tools.empty()) {
    generation.prompt = tokenizer.encode(chat_text(service, std::move(messages), options), true, true);
    if (!options.reasoning || tokenizer.approximates_chat_template()) return nullptr;
    try {
      const PlainAnswers plain = tokenizer.tool_template().plain_answers(options.variables);
      keep(plain.kept_tokens);
      return plain.format;
    } catch (const Error&) {
      return nullptr;  // a template that libllama-common cannot take: its answers are content
    }
  }
  if (!generation.sampler.grammar.empty()) refuse("grammar", "'grammar': give either this or tools, not both");
  const ToolPrompt prompt = tool_prompt(service, std::move(messages), options);
  try {
    generation.prompt = tokenizer.encode(prompt.text, true, true);
    prompt.constrain(generation.sampler, tokenizer);
  } catch (const Error& error) {
    refuse("tools", "{}", error.what());
  }
  generation.stops.insert(generation.stops.end(), prompt.stops.begin(), prompt.stops.end());
  keep(prompt.kept_tokens);
  return prompt.format;
}

Json delta_json(const ChatDelta& delta) {
  using Kind = ChatDelta::Kind;
  if (delta.kind == Kind::Content) return {{"content", delta.text}};
  if (delta.kind == Kind::Reasoning) return {{"reasoning_content", delta.text}};
  Json call{{"index", delta.call}};
  if (delta.kind == Kind::CallBegins) {
    call["id"] = delta.call_id;
    call["type"] = "function";
    call["function"] = {{"name", delta.text}, {"arguments", ""}};
  } else {
    call["function"] = {{"arguments", delta.text}};
  }
  return {{"tool_calls", Json::array({std::move(call)})}};
}

Json message_json(const ChatAnswer& answer) {
  Json message{{"role", "assistant"}};
  message["content"] = answer.content.empty() && !answer.calls.empty() ? Json() : Json(answer.content);
  if (!answer.reasoning.empty()) message["reasoning_content"] = answer.reasoning;
  for (const ChatToolCall& call : answer.calls) {
    message["tool_calls"].push_back(
        {{"id", call.id}, {"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  return message;
}

}  // namespace tidal::server
