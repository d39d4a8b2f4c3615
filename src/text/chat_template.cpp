#include "text/chat_template.h"

#include <llama.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "core/error.h"
#include "core/utf8.h"
#ifdef TIDAL_JINJA
#include "text/jinja.h"
#endif

namespace tidal {
namespace {

/// The system message as the beginning of the first user message; nullopt when there are not both.
std::optional<std::vector<ChatMessage>> without_system(std::span<const ChatMessage> messages) {
  if (messages.size() < 2 || messages[0].role != "system" || messages[1].role != "user") return std::nullopt;
  std::vector<ChatMessage> folded(messages.begin() + 1, messages.end());
  folded[0].content = messages[0].content + "\n" + folded[0].content;
  return folded;
}

}  // namespace

#ifdef TIDAL_JINJA
struct ChatTemplate::Jinja {
  JinjaTemplate program;
  ChatTemplateVariables variables;
};

bool ChatTemplate::renders_jinja() { return true; }
#else
struct ChatTemplate::Jinja {};

bool ChatTemplate::renders_jinja() { return false; }
#endif

ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

ChatTemplate::ChatTemplate(std::string name, std::string source, ChatTemplateVariables variables)
    : name_(std::move(name)), source_(std::move(source)) {
#ifdef TIDAL_JINJA
  try {
    if (!variables.more.empty()) check_json_object(variables.more);
  } catch (const Error&) {
    fail("chat template: its variables '{}' are not a JSON object, expected one such as {{\"enable_thinking\": false}}",
         variables.more);
  }
  try {
    jinja_ = std::make_unique<Jinja>(Jinja{JinjaTemplate(source_), std::move(variables)});
  } catch (const Error& error) {
    fail("{}: its chat template cannot be used: {}", name_, error.what());
  }
#else
  if (!variables.more.empty()) fail("chat template: variables need a build with libllama-common, this one has none");
  const ChatMessage probe{"user", "?"};
  render_by_libllama({&probe, 1}, true);
#endif
}

std::vector<std::string> ChatTemplate::built_in_names() {
  std::vector<const char*> names(static_cast<size_t>(std::max(llama_chat_builtin_templates(nullptr, 0), 0)));
  llama_chat_builtin_templates(names.data(), names.size());
  return {names.begin(), names.end()};
}

ChatTemplate ChatTemplate::built_in(const std::string& name) {
  const std::vector<std::string> names = built_in_names();
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    fail("chat template: libllama has none called '{}'", name);
  }
  ChatTemplate built_in;
  built_in.name_ = built_in.source_ = name;
  return built_in;
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                 const std::string& more) const {
  for (const ChatMessage& message : messages) check_text(message.content, message.role + " message");
  if (!jinja_) {
    if (!more.empty()) fail("chat template: '{}' is rendered by libllama and has no variables", name_);
    return render_by_libllama(messages, add_generation_prompt);
  }
#ifdef TIDAL_JINJA
  const auto render = [&](std::span<const ChatMessage> chat) {
    return jinja_->program.render(chat, add_generation_prompt, jinja_->variables, more);
  };
  try {
    if (!more.empty()) check_json_object(more);
    try {
      return render(messages);
    } catch (const JinjaRaised&) {
      const auto folded = without_system(messages);
      if (!folded) throw;
      return render(*folded);
    }
  } catch (const JinjaRaised& raised) {
    fail("{}: its chat template refuses this conversation: {}", name_, raised.what());
  } catch (const Error& error) {
    fail("{}: its chat template cannot be rendered: {}", name_, error.what());
  }
#endif
  return "";
}

std::string ChatTemplate::render_by_libllama(std::span<const ChatMessage> messages, bool add_generation_prompt) const {
  std::vector<llama_chat_message> chat;
  size_t bytes = 256;
  for (const ChatMessage& message : messages) {
    chat.push_back({message.role.c_str(), message.content.c_str()});
    bytes += 2 * (message.role.size() + message.content.size());
  }
  if (bytes > std::numeric_limits<int32_t>::max()) fail("chat: its messages are too long, expected less than 1 GiB");
  std::string text(bytes, '\0');
  const auto apply = [&] {
    return llama_chat_apply_template(source_.c_str(), chat.data(), chat.size(), add_generation_prompt, text.data(),
                                     static_cast<int32_t>(text.size()));
  };
  int32_t count = apply();
  if (count > static_cast<int32_t>(text.size())) {
    text.resize(static_cast<size_t>(count));
    count = apply();
  }
  if (count < 0) {
    fail(
        "{}: libllama does not know the kind of its chat template, expected a common one such as chatml; "
        "--chat-template FILE|NAME names another, and a prompt without chat works",
        name_);
  }
  text.resize(static_cast<size_t>(count));
  return text;
}

}  // namespace tidal
