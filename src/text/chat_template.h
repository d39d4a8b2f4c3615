// From the messages of a conversation to the text of a prompt.
#pragma once

#include <ctime>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace tidal {

struct ChatToolCall {
  std::string id;
  std::string name;
  std::string arguments;  ///< JSON
};

struct ChatMessage {
  std::string role;  ///< system, user, assistant or tool
  std::string content;
  std::vector<ChatToolCall> tool_calls{};  ///< of an assistant
  std::string tool_call_id{};              ///< of a tool: the call that this is the result of
  std::string name{};                      ///< of a tool: its name
  std::string reasoning{};                 ///< of an assistant: what it thought before the content
};

/// What a template can ask for beside the messages.
struct ChatTemplateVariables {
  std::string bos_token{}, eos_token{}, pad_token{};  ///< "": not defined
  /// More variables, a JSON object such as {"enable_thinking": false}; "" for none. llama.cpp's chat_template_kwargs.
  std::string more{};
  std::time_t now = std::time(nullptr);  ///< what strftime_now() tells, however long the conversation takes
};

/// A chat template: Jinja, rendered by llama.cpp's engine with the globals that transformers gives it (messages,
/// add_generation_prompt, tools and documents as none, the variables, raise_exception, strftime_now, range), or one of
/// those that libllama has code for. May be used by several threads at once.
class ChatTemplate {
 public:
  /// `source`: Jinja text; `name`: what errors call it. In a build without the engine libllama takes the template for
  /// one of those that it knows by its looks. Throws Error when it is not valid Jinja, when `variables.more` is not a
  /// JSON object, and without the engine when libllama does not know its kind or there are more variables.
  ChatTemplate(std::string name, std::string source, ChatTemplateVariables variables);
  /// The template that libllama has under this name. Throws Error when it has none.
  static ChatTemplate built_in(const std::string& name);
  /// Their names.
  static std::vector<std::string> built_in_names();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  /// Whether this build renders Jinja.
  static bool renders_jinja();

  /// The text, with whatever the template writes (BOS, too). `add_generation_prompt`: ends where the assistant starts
  /// to answer. A system message that the template refuses becomes the beginning of the first user message, as in
  /// llama.cpp. Of calls the template gets what transformers gives it: their arguments as objects, as text when it
  /// cannot take those. `more`: further variables, over those of the template. Throws Error, with the template's own
  /// words when it refuses the conversation; for a message that is not UTF-8 or has a NUL in it; for variables that are
  /// not a JSON object; and for a template that does not come to an end.
  std::string render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                     const std::string& more = "") const;

 private:
  struct Jinja;

  ChatTemplate() = default;
  std::string render_by_libllama(std::span<const ChatMessage> messages, bool add_generation_prompt) const;

  std::string name_;
  std::string source_;            // what libllama knows it by, a name or Jinja; unless jinja_
  std::unique_ptr<Jinja> jinja_;  // null: libllama's own text
};

}  // namespace tidal
