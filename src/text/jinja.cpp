#ifdef TIDAL_JINJA
#include "text/jinja.h"

#include <jinja/parser.h>
#include <jinja/runtime.h>
#include <json.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

namespace tidal {
namespace {

constexpr int kMostSteps = 500'000;                 // statements executed
constexpr size_t kMostText = size_t{16} << 20;      // bytes of all results, beside what the messages account for
constexpr size_t kTextPerByte = 64;                 // results that a byte of the messages accounts for
constexpr int kMostNesting = 200;                   // brackets and statements inside each other
constexpr int kMostTokens = 4096;                   // of one expression or statement
constexpr size_t kTemplateStack = size_t{1} << 20;  // bytes
constexpr int64_t kMostRange = 100'000;             // as in the sandbox of Python's jinja2

// What ends a rendering. No std::exception: the engine would put those into words of its own.
struct Raised {
  std::string message;
};
struct Exceeded {
  std::string what;
};

/// What the rendering of this thread has taken so far.
struct Meter {
  int steps = 0;
  size_t text = 0, most_text = 0;
  const char* stack = nullptr;  // where it began
};
thread_local Meter meter;

void count_text(const jinja::value& value) {
  if (!jinja::is_val<jinja::value_string>(value)) return;
  meter.text += value->val_str.length();
  if (meter.text > meter.most_text) throw Exceeded{"it makes text without end"};
}

/// A statement of the template that counts what it takes.
struct Metered : jinja::statement {
  explicit Metered(jinja::statement_ptr statement)
      : inner(std::move(statement)), set(dynamic_cast<const jinja::set_statement*>(inner.get())) {
    pos = inner->pos;
  }
  std::string type() const override { return inner->type(); }
  void visit(jinja::context& context) const override { inner->visit(context); }
  jinja::value execute_impl(jinja::context& context) const override {
    if (++meter.steps > kMostSteps) throw Exceeded{fmt::format("it takes more than {} steps", kMostSteps)};
    const auto* here = static_cast<const char*>(__builtin_frame_address(0));
    if (meter.stack > here && static_cast<size_t>(meter.stack - here) > kTemplateStack) {
      throw Exceeded{"its calls nest too deeply"};
    }
    jinja::value value = inner->execute(context);
    count_text(value);
    // A variable that doubles in every step grows without any result.
    if (set && !dynamic_cast<const jinja::tuple_literal*>(set->assignee.get())) {
      count_text(set->assignee->execute(context));
    }
    return value;
  }

  jinja::statement_ptr inner;
  const jinja::set_statement* set;
};

void meter_all(jinja::statements& statements) {
  for (jinja::statement_ptr& statement : statements) {
    if (!statement) continue;
    if (auto* s = dynamic_cast<jinja::if_statement*>(statement.get())) meter_all(s->body), meter_all(s->alternate);
    if (auto* s = dynamic_cast<jinja::for_statement*>(statement.get())) meter_all(s->body), meter_all(s->default_block);
    if (auto* s = dynamic_cast<jinja::macro_statement*>(statement.get())) meter_all(s->body);
    if (auto* s = dynamic_cast<jinja::set_statement*>(statement.get())) meter_all(s->body);
    if (auto* s = dynamic_cast<jinja::call_statement*>(statement.get())) meter_all(s->body);
    if (auto* s = dynamic_cast<jinja::filter_statement*>(statement.get())) meter_all(s->body);
    statement = std::make_unique<Metered>(std::move(statement));
  }
}

/// The parser calls itself for what is nested. Throws Error where its stack might not last.
void check_nesting(const std::vector<jinja::token>& tokens) {
  using Type = jinja::token;
  int brackets = 0, in_one = 0;
  std::vector<int> blocks;  // an if with n elifs nests 1 + n deep
  int depth = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const jinja::token& token = tokens[i];
    ++in_one;
    if (token.t == Type::text || token.t == Type::open_statement || token.t == Type::open_expression) in_one = 0;
    const bool opens =
        token.t == Type::open_paren || token.t == Type::open_square_bracket || token.t == Type::open_curly_bracket;
    const bool closes =
        token.t == Type::close_paren || token.t == Type::close_square_bracket || token.t == Type::close_curly_bracket;
    brackets += opens ? 1 : closes ? -1 : 0;
    if (token.t == Type::open_statement && i + 1 < tokens.size()) {
      const std::string& word = tokens[i + 1].value;
      if (word == "if" || word == "for" || word == "macro" || word == "call" || word == "filter") {
        blocks.push_back(1);
        ++depth;
      } else if (word == "elif" && !blocks.empty()) {
        ++blocks.back();
        ++depth;
      } else if ((word == "endif" || word == "endfor" || word == "endmacro" || word == "endcall" ||
                  word == "endfilter") &&
                 !blocks.empty()) {
        depth -= blocks.back();
        blocks.pop_back();
      }
    }
    if (brackets > kMostNesting || depth > kMostNesting) {
      fail("it nests more than {} deep", kMostNesting);
    }
    if (in_one > kMostTokens) fail("one of its statements has more than {} parts", kMostTokens);
  }
}

/// The engine's messages have several lines, the place among them: "parser: Expected ...\n...source...\n   ^".
std::string invalid(std::string_view message) {
  const size_t end = std::min(message.find('\n'), message.size());
  std::string text(message.substr(0, end));
  for (const std::string_view who : {"parser: ", "lexer: "}) {
    if (text.starts_with(who)) text.erase(0, who.size());
  }
  if (end < message.size()) {
    const std::string_view source = message.substr(end + 1);
    text += fmt::format(" near '{}'", source.substr(0, source.find('\n')));
  }
  return text;
}

/// "\n----\nWhile executing X at line 3, column 5 in source:\n...\nError: what is wrong".
std::string failed(std::string_view message) {
  constexpr std::string_view kError = "Error: ", kAt = " at line ";
  std::string text(message);
  if (const size_t error = message.rfind(kError); error != std::string_view::npos)
    text = message.substr(error + kError.size());
  std::replace(text.begin(), text.end(), '\n', ' ');
  if (const size_t at = message.find(kAt); at != std::string_view::npos) {
    const size_t begin = at + kAt.size();
    text = fmt::format("line {}: {}", message.substr(begin, message.find(',', begin) - begin), text);
  }
  return text;
}

jinja::value text_value(const std::string& text) { return jinja::mk_val<jinja::value_string>(text); }

jinja::value function(const std::string& name, const jinja::func_handler& body) {
  return jinja::mk_val<jinja::value_func>(name, body);
}

/// The arguments of a call as an object where they are one; as text unless `objects`.
jinja::value arguments_value(const std::string& arguments, bool objects) {
  if (objects) {
    try {
      const common_json json = common_json::parse(arguments);
      if (json.is_object()) {
        jinja::context holder;
        common_json wrapped = common_json::object();
        wrapped["arguments"] = json;
        jinja::global_from_json(holder, wrapped, false);
        return holder.get_val("arguments");
      }
    } catch (const std::exception&) {  // no JSON: text
    }
  }
  return text_value(arguments);
}

/// A message as transformers gives it to a template: only the fields that it has.
jinja::value message_value(const ChatMessage& message, bool objects) {
  auto object = jinja::mk_val<jinja::value_object>();
  object->insert("role", text_value(message.role));
  object->insert("content", text_value(message.content));
  const auto add = [&](const char* name, const std::string& text) {
    if (!text.empty()) object->insert(name, text_value(text));
  };
  add("reasoning_content", message.reasoning);
  add("tool_call_id", message.tool_call_id);
  add("name", message.name);
  if (message.tool_calls.empty()) return object;
  auto calls = jinja::mk_val<jinja::value_array>();
  for (const ChatToolCall& call : message.tool_calls) {
    auto function = jinja::mk_val<jinja::value_object>();
    function->insert("name", text_value(call.name));
    function->insert("arguments", arguments_value(call.arguments, objects));
    auto one = jinja::mk_val<jinja::value_object>();
    one->insert("type", text_value("function"));
    if (!call.id.empty()) one->insert("id", text_value(call.id));
    one->insert("function", function);
    calls->push_back(one);
  }
  object->insert("tool_calls", calls);
  return object;
}

size_t size_of(const ChatMessage& message) {
  size_t size = message.role.size() + message.content.size() + message.reasoning.size() + message.name.size();
  for (const ChatToolCall& call : message.tool_calls) size += call.name.size() + call.arguments.size();
  return size;
}

jinja::value raise(const jinja::func_args& arguments) {
  throw Raised{arguments.count() > 0 ? arguments.get_pos(0)->as_string().str() : ""};
}

jinja::value bounded_range(const jinja::func_args& arguments) {
  int64_t bounds[3] = {0, 0, 1};
  const size_t count = arguments.count();
  for (size_t i = 0; i < std::min<size_t>(count, 3); ++i) bounds[count == 1 ? 1 : i] = arguments.get_pos(i)->as_int();
  const double length = bounds[2] == 0 ? 0
                                       : (static_cast<double>(bounds[1]) - static_cast<double>(bounds[0])) /
                                             static_cast<double>(bounds[2]);
  if (length > static_cast<double>(kMostRange)) {
    throw Exceeded{fmt::format("it asks for a range of more than {}", kMostRange)};
  }
  return jinja::global_builtins().at("range")(arguments);
}

}  // namespace

struct JinjaTemplate::Program {
  std::string source;
  jinja::program program;

  /// `none`: tools and documents are none, as in transformers, not undefined. Throws what the engine throws, Raised and
  /// Exceeded.
  /// `none`: tools and documents are none, else not defined. `objects`: arguments of calls are objects, else text.
  std::string render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                     const ChatTemplateVariables& variables, const std::string& more, bool none, bool objects) const;
};

std::string JinjaTemplate::Program::render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                           const ChatTemplateVariables& variables, const std::string& more, bool none,
                                           bool objects) const {
  meter = {.most_text = kMostText, .stack = static_cast<const char*>(__builtin_frame_address(0))};
  auto list = jinja::mk_val<jinja::value_array>();
  for (const ChatMessage& message : messages) {
    list->push_back(message_value(message, objects));
    meter.most_text += kTextPerByte * size_of(message);
  }
  jinja::context context(source);
  context.current_time = variables.now;
  const auto set = [&](const char* name, const std::string& text) {
    if (!text.empty()) context.set_val(name, text_value(text));
  };
  set("bos_token", variables.bos_token);
  set("eos_token", variables.eos_token);
  set("pad_token", variables.pad_token);
  if (none) {
    context.set_val("tools", jinja::mk_val<jinja::value_none>());
    context.set_val("documents", jinja::mk_val<jinja::value_none>());
  }
  context.set_val("raise_exception", function("raise_exception", raise));
  context.set_val("range", function("range", bounded_range));
  for (const std::string& json : {variables.more, more}) {
    if (!json.empty()) jinja::global_from_json(context, common_json::parse(json), false);
  }
  context.set_val("messages", list);
  context.set_val("add_generation_prompt", jinja::mk_val<jinja::value_bool>(add_generation_prompt));
  const jinja::value results = jinja::runtime(context).execute(program);
  return jinja::runtime::gather_string_parts(results)->as_string().str();
}

JinjaTemplate::JinjaTemplate(const std::string& source) : program_(std::make_unique<Program>()) {
  try {
    const jinja::lexer_result tokens = jinja::lexer().tokenize(source);
    check_nesting(tokens.tokens);
    program_->source = tokens.source;
    program_->program = jinja::parse_from_tokens(tokens);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail("it is not valid Jinja: {}", invalid(error.what()));
  }
  meter_all(program_->program.body);
}

JinjaTemplate::JinjaTemplate(JinjaTemplate&&) noexcept = default;
JinjaTemplate::~JinjaTemplate() = default;

std::string JinjaTemplate::render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                  const ChatTemplateVariables& variables, const std::string& more) const {
  const bool calls = std::any_of(messages.begin(), messages.end(),
                                 [](const ChatMessage& message) { return !message.tool_calls.empty(); });
  std::string why;
  // Templates that are for tools alone walk through them without asking whether there are any: none is no list, what is
  // not defined an empty one.
  for (const auto& [none, objects] : {std::pair{true, true}, {true, false}, {false, true}, {false, false}}) {
    if (!objects && !calls) continue;
    try {
      return program_->render(messages, add_generation_prompt, variables, more, none, objects);
    } catch (const Raised& raised) {
      throw JinjaRaised(raised.message);
    } catch (const Exceeded& exceeded) {
      fail("{}", exceeded.what);
    } catch (const std::bad_alloc&) {
      fail("it takes more memory than there is");
    } catch (const std::exception& error) {
      if (why.empty()) why = failed(error.what());
    }
  }
  fail("it fails in {}", why);
}

void check_json_object(const std::string& text) {
  try {
    if (common_json::parse(text).is_object()) return;
  } catch (const std::exception&) {  // the message below serves
  }
  fail("it is not a JSON object");
}

}  // namespace tidal
#endif
