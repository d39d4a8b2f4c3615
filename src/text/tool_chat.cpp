#include "text/tool_chat.h"

#include <llama.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <regex>
#include <utility>

#include "core/error.h"
#include "text/llama_log.h"
#include "text/tokenizer.h"
#ifdef TIDAL_JINJA
#include <chat.h>
#include <log.h>
#endif

namespace tidal {

void ToolPrompt::constrain(SamplerOptions& options, const Tokenizer& tokenizer) const {
  options.grammar = grammar;
  if (grammar.empty()) return;
  if (!lazy) {
    options.grammar_prefix = tokenizer.encode(answer_begin, false, true);
    return;
  }
  options.thought_begin = thought_begin;
  options.thought_end = thought_end;
  const size_t last = answer_begin.find_last_not_of(" \t\r\n") + 1;
  options.in_thought = !thought_begin.empty() && answer_begin.substr(0, last).ends_with(thought_begin);
  for (const std::string& word : trigger_words) {
    const std::vector<Token> tokens = tokenizer.encode(word, false, true);
    if (tokens.size() == 1) {
      options.grammar_tokens.push_back(tokens[0]);
      continue;
    }
    std::string pattern;
    for (const char byte : word) {
      if (std::string_view(".^$|()*+?[]{}\\/").find(byte) != std::string_view::npos) pattern += '\\';
      pattern += byte;
    }
    options.grammar_patterns.push_back(std::move(pattern));
  }
  options.grammar_patterns.insert(options.grammar_patterns.end(), trigger_patterns.begin(), trigger_patterns.end());
}

ToolTemplate::ToolTemplate(ToolTemplate&&) noexcept = default;
ToolTemplate& ToolTemplate::operator=(ToolTemplate&&) noexcept = default;
ToolTemplate::~ToolTemplate() = default;

#ifdef TIDAL_JINJA

namespace {

/// Put before a template without tools of its own: makes messages that it knows of those that it does not. Tools come
/// in the first message, since not every template has a system message; results are messages of the user.
constexpr const char* kToolsForAll = R"({%- set all = namespace(list=[], tools='') -%}
{%- if tools -%}
{%- set all.tools = '# Tools\n\nYou can call functions. These are there, each as JSON:\n<tools>' -%}
{%- for tool in tools -%}{%- set all.tools = all.tools + '\n' + (tool | tojson) -%}{%- endfor -%}
{%- set all.tools = all.tools + '\n</tools>\n\nTo call one, answer with its name and its arguments as JSON:\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>' -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' and message.tool_calls -%}
{%- set text = namespace(whole=message.content or '') -%}
{%- for call in message.tool_calls -%}
{%- set text.whole = text.whole + ('\n' if text.whole else '') + '<tool_call>\n{"name": ' + (call.function.name | tojson) + ', "arguments": ' + (call.function.arguments | tojson) + '}\n</tool_call>' -%}
{%- endfor -%}
{%- set all.list = all.list + [{'role': 'assistant', 'content': text.whole}] -%}
{%- elif message.role == 'tool' -%}
{%- set result = '<tool_response>\n' + message.content + '\n</tool_response>' -%}
{%- if loop.index0 > 0 and messages[loop.index0 - 1].role == 'tool' -%}
{%- set all.list = all.list[:-1] + [{'role': 'user', 'content': all.list[-1].content + '\n' + result}] -%}
{%- else -%}
{%- set all.list = all.list + [{'role': 'user', 'content': result}] -%}
{%- endif -%}
{%- elif all.tools and message.role == 'system' -%}
{%- set all.list = all.list + [{'role': 'system', 'content': message.content + '\n\n' + all.tools}] -%}
{%- set all.tools = '' -%}
{%- elif all.tools -%}
{%- set all.list = all.list + [{'role': message.role, 'content': all.tools + '\n\n' + message.content}] -%}
{%- set all.tools = '' -%}
{%- else -%}
{%- set all.list = all.list + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = all.list -%}
{%- set tools = none -%}
)";

/// The library's messages have lines of source before what is wrong.
std::string in_one_line(std::string_view message) {
  for (const std::string_view before : {"Error: ", "Jinja Exception: "}) {
    if (const size_t at = message.rfind(before); at != std::string_view::npos)
      message.remove_prefix(at + before.size());
  }
  std::string text(message.substr(0, 500));
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

class LibraryFormat final : public AnswerFormat {
 public:
  LibraryFormat(const common_chat_params& found, bool reasoning) : parameters_(found) {
    parameters_.reasoning_format = reasoning ? COMMON_REASONING_FORMAT_DEEPSEEK : COMMON_REASONING_FORMAT_NONE;
    if (!found.parser.empty()) parameters_.parser.load(found.parser);
  }

  ChatAnswer parse(const std::string& text, bool partial) const override {
    try {
      common_chat_msg message = common_chat_parse(text, partial, parameters_);
      ChatAnswer answer{std::move(message.content), std::move(message.reasoning_content), {}};
      for (common_chat_tool_call& call : message.tool_calls) {
        answer.calls.push_back({std::move(call.id), std::move(call.name), std::move(call.arguments)});
      }
      return answer;
    } catch (const std::exception& error) {
      fail("answer: {}", in_one_line(error.what()));
    }
  }

 private:
  common_chat_parser_params parameters_;
};

/// The line of `grammar` that begins with `rule`, as begin and end; both 0 when there is none.
std::pair<size_t, size_t> line_of(const std::string& grammar, const std::string& rule) {
  for (size_t begin = 0; begin < grammar.size();) {
    const size_t end = std::min(grammar.find('\n', begin), grammar.size());
    if (grammar.compare(begin, rule.size(), rule) == 0) return {begin, end};
    begin = end + 1;
  }
  return {0, 0};
}

/// A grammar of required calls without the words that the library lets come before them: a model that was not taught
/// to call would go on with words until it is cut off. Left as it is where its rule `root` is another than known.
std::string without_words(std::string grammar) {
  static const std::regex words(R"( until-[0-9]+\??((?: space)* tool-call[a-z-]*)$)");
  const auto [begin, end] = line_of(grammar, "root ::= ");
  const std::string root = std::regex_replace(grammar.substr(begin, end - begin), words, "$1");
  return grammar.replace(begin, end - begin, root);
}

/// Allows one call where the library allows several, whatever it was asked for.
std::string with_one_call(std::string grammar) {
  const auto [begin, end] = line_of(grammar, "tool-calls ::= ");
  const std::string rule = grammar.substr(begin, end - begin);
  if (rule != "tool-calls ::= (tool-call space)+" && rule != "tool-calls ::= (tool-call? space)+") return grammar;
  return grammar.replace(begin, end - begin, "tool-calls ::= tool-call space");
}

common_chat_msg library_message(const ChatMessage& message) {
  common_chat_msg made;
  made.role = message.role;
  made.content = message.content;
  made.reasoning_content = message.reasoning;
  made.tool_name = message.name;
  made.tool_call_id = message.tool_call_id;
  for (const ChatToolCall& call : message.tool_calls) made.tool_calls.push_back({call.name, call.arguments, call.id});
  return made;
}

/// Names of nine digits for the calls of a conversation, which some templates insist on; false when it has none.
bool rename_calls(std::vector<common_chat_msg>& messages) {
  std::map<std::string, std::string> names;
  const auto rename = [&](std::string& id) {
    if (!id.empty()) id = names.try_emplace(id, fmt::format("{:09}", names.size() + 1)).first->second;
  };
  for (common_chat_msg& message : messages) {
    rename(message.tool_call_id);
    for (common_chat_tool_call& call : message.tool_calls) rename(call.id);
  }
  return !names.empty();
}

common_chat_templates_inputs library_inputs(const ToolRequest& request, const std::string& own_variables) {
  common_chat_templates_inputs inputs;
  for (const ChatMessage& message : request.messages) inputs.messages.push_back(library_message(message));
  for (const ChatTool& tool : request.tools) {
    inputs.tools.push_back({tool.name, tool.description, tool.parameters});
  }
  inputs.tool_choice = request.choice == ToolChoice::Required ? COMMON_CHAT_TOOL_CHOICE_REQUIRED
                       : request.choice == ToolChoice::None   ? COMMON_CHAT_TOOL_CHOICE_NONE
                                                              : COMMON_CHAT_TOOL_CHOICE_AUTO;
  inputs.reasoning_format = request.reasoning ? COMMON_REASONING_FORMAT_DEEPSEEK : COMMON_REASONING_FORMAT_NONE;
  for (const std::string& variables : {own_variables, request.variables}) {
    if (variables.empty()) continue;
    const common_json object = common_json::parse(variables);
    if (!object.is_object()) fail("chat template: its variables are not a JSON object");
    for (auto it = object.begin(); it != object.end(); ++it) {
      inputs.chat_template_kwargs[it.key()] = it.value().dump();
      if (it.key() == "enable_thinking" && it.value().is_boolean()) inputs.enable_thinking = it.value().get<bool>();
    }
  }
  return inputs;
}

}  // namespace

struct ToolTemplate::State {
  std::string name, variables;
  common_chat_templates_ptr own, with_tools;  // the second may be the first with kToolsForAll before it
  bool parallel = false;                      // several calls in one answer are usual
  std::mutex mutex;
  std::map<std::string, PlainAnswers> plain;  // by the variables of requests

  const common_chat_templates* for_tools() const { return with_tools ? with_tools.get() : own.get(); }

  common_chat_params apply(const common_chat_templates* templates, const ToolRequest& request) const {
    try {
      common_chat_templates_inputs inputs = library_inputs(request, variables);
      inputs.parallel_tool_calls = request.parallel.value_or(parallel);
      // Warnings of schemas are printed; a client's schemas are nobody else's to read.
      std::optional<CapturedStderr> printed;
      if (!request.tools.empty()) printed.emplace();
      try {
        return common_chat_templates_apply(templates, inputs);
      } catch (const std::exception&) {
        if (!rename_calls(inputs.messages)) throw;
        return common_chat_templates_apply(templates, inputs);
      }
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      fail("{}: its chat template cannot be rendered with these messages and tools: {}", name,
           in_one_line(error.what()));
    }
  }

  /// Whether a template makes a grammar of a tool: it has tools, and calls in a form that was found out.
  bool has_tools(const common_chat_templates* templates) const {
    try {
      const std::string schema = R"({"type": "object", "properties": {"a": {"type": "string"}}})";
      const ToolRequest request{{{"user", "?"}}, {{"probe", "?", schema}}, ToolChoice::Required};
      return !apply(templates, request).grammar.empty();
    } catch (const Error&) {
      return false;
    }
  }
};

ToolTemplate::ToolTemplate(std::string name, const llama_model* model, const std::string& source,
                           const std::string& variables)
    : state_(std::make_unique<State>()) {
  // It would write parts of prompts and answers to the terminal.
  static const bool silent = [] {
    common_log_set_verbosity_thold(-1);
    return true;
  }();
  (void)silent;
  state_->name = std::move(name);
  state_->variables = variables;
  try {
    state_->own = common_chat_templates_init(model, source);
    if (!state_->has_tools(state_->own.get())) {
      const std::string text = kToolsForAll + common_chat_templates_source(state_->own.get());
      state_->with_tools = common_chat_templates_init(model, text);
    }
    const std::map<std::string, bool> found = common_chat_templates_get_caps(state_->for_tools());
    const auto parallel = found.find("supports_parallel_tool_calls");
    state_->parallel = parallel != found.end() && parallel->second;
  } catch (const std::exception& error) {
    fail("{}: its chat template cannot be used with tools: {}", state_->name, in_one_line(error.what()));
  }
}

ToolPrompt ToolTemplate::prompt(const ToolRequest& request) const {
  common_chat_params found = state_->apply(state_->for_tools(), request);
  if (request.choice == ToolChoice::Required && found.grammar.empty()) {
    fail("{}: its chat template has no form of calls that could be required", state_->name);
  }
  ToolPrompt prompt;
  try {
    prompt.format = std::make_shared<LibraryFormat>(found, request.reasoning);
  } catch (const std::exception& error) {
    fail("{}: calls by its chat template cannot be read: {}", state_->name, in_one_line(error.what()));
  }
  prompt.text = std::move(found.prompt);
  prompt.grammar = std::move(found.grammar);
  if (request.choice == ToolChoice::Required) prompt.grammar = without_words(std::move(prompt.grammar));
  if (!request.parallel.value_or(state_->parallel)) prompt.grammar = with_one_call(std::move(prompt.grammar));
  prompt.lazy = found.grammar_lazy;
  prompt.answer_begin = std::move(found.generation_prompt);
  if (!found.thinking_end_tags.empty()) {
    prompt.thought_begin = std::move(found.thinking_start_tag);
    prompt.thought_end = std::move(found.thinking_end_tags.front());
  }
  prompt.stops = std::move(found.additional_stops);
  prompt.kept_tokens = std::move(found.preserved_tokens);
  for (common_grammar_trigger& trigger : found.grammar_triggers) {
    switch (trigger.type) {
      case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN:
      case COMMON_GRAMMAR_TRIGGER_TYPE_WORD: prompt.trigger_words.push_back(std::move(trigger.value)); break;
      case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN: prompt.trigger_patterns.push_back(std::move(trigger.value)); break;
      case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL:
        prompt.trigger_patterns.push_back("^" + trigger.value + "$");
        break;
    }
  }
  if (prompt.lazy && prompt.trigger_words.empty() && prompt.trigger_patterns.empty()) prompt.grammar.clear();
  return prompt;
}

PlainAnswers ToolTemplate::plain_answers(const std::string& variables) const {
  constexpr size_t kMostKept = 64;
  const std::lock_guard lock(state_->mutex);
  if (const auto known = state_->plain.find(variables); known != state_->plain.end()) return known->second;
  PlainAnswers answers;
  try {
    const ToolRequest request{.messages = {{"user", "?"}}, .choice = ToolChoice::None, .variables = variables};
    const common_chat_params found = state_->apply(state_->own.get(), request);
    if (found.supports_thinking) {
      answers = {std::make_shared<LibraryFormat>(found, true), found.preserved_tokens};
    }
  } catch (const std::exception&) {  // what cannot be found out is not told apart
  }
  if (state_->plain.size() >= kMostKept) state_->plain.clear();
  return state_->plain[variables] = std::move(answers);
}

#else

struct ToolTemplate::State {};

ToolTemplate::ToolTemplate(std::string name, const llama_model*, const std::string&, const std::string&) {
  fail("{}: tools need a build with libllama-common, this one has none", name);
}

ToolPrompt ToolTemplate::prompt(const ToolRequest&) const { return {}; }

PlainAnswers ToolTemplate::plain_answers(const std::string&) const { return {}; }

#endif

}  // namespace tidal
