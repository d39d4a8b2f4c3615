// Conversations with tools, by libllama-common: from messages and tools to a prompt and what holds its answer to the
// model's own form of calls, and that form itself.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "text/chat_answer.h"
#include "text/chat_template.h"
#include "text/sampler.h"

struct llama_model;

namespace tidal {

struct ChatTool {
  std::string name;
  std::string description;
  std::string parameters = "{}";  ///< a JSON schema
};

enum class ToolChoice { None, Auto, Required };

struct ToolRequest {
  std::vector<ChatMessage> messages;
  std::vector<ChatTool> tools{};
  ToolChoice choice = ToolChoice::Auto;
  std::optional<bool> parallel{};  ///< several calls in one answer; nullopt: where the template has them
  std::string variables{};         ///< ChatTemplateVariables::more, over those that the template has already
  bool reasoning = true;           ///< thoughts are told from the content
};

/// A prompt, and what the answer to it is held to.
struct ToolPrompt {
  std::string text;     ///< for Tokenizer::encode() with `add_special`
  std::string grammar;  ///< "" for none
  bool lazy = false;    ///< the grammar begins behind one of the triggers
  std::vector<std::string> trigger_words, trigger_patterns;
  std::string thought_begin, thought_end;  ///< marks of thoughts, "" for none
  std::string answer_begin;                ///< the prompt's end, which a grammar that is not lazy begins with
  std::vector<std::string> stops;          ///< that end the answer beside its end token
  std::vector<std::string> kept_tokens;    ///< control tokens that are part of the answer's text
  std::shared_ptr<const AnswerFormat> format;

  /// Sets the grammar of `options`.
  void constrain(SamplerOptions& options, const Tokenizer& tokenizer) const;
};

/// How a model answers without tools.
struct PlainAnswers {
  std::shared_ptr<const AnswerFormat> format;  ///< null where there is nothing to tell apart
  std::vector<std::string> kept_tokens;        ///< as ToolPrompt's
};

/// A chat template with what libllama-common finds out of it by rendering: how it has tools, calls and thoughts. A
/// template without tools gets a common form of them: tools in the first message, calls in <tool_call>. May be used by
/// several threads at once.
///
/// The library renders without the bounds that ChatTemplate has. Templates come from the model file, which the user
/// has chosen; Tokenizer has ChatTemplate render each once before, so that one without an end fails there.
class ToolTemplate {
 public:
  /// `model`: whose tokens the template may name, a vocabulary is enough; its own template unless `source` (Jinja) is
  /// given. `model` may be null when `source` is not "". `variables`: as ChatTemplateVariables::more. Throws Error for
  /// a template that is not valid Jinja and in builds without libllama-common.
  ToolTemplate(std::string name, const llama_model* model, const std::string& source, const std::string& variables);
  ToolTemplate(ToolTemplate&&) noexcept;
  ToolTemplate& operator=(ToolTemplate&&) noexcept;
  ~ToolTemplate();

  /// Throws Error for what the template refuses, tools that make no grammar, and variables that are no object.
  ToolPrompt prompt(const ToolRequest& request) const;
  /// How answers of a conversation without tools are marked.
  PlainAnswers plain_answers(const std::string& variables) const;

 private:
  struct State;

  std::unique_ptr<State> state_;
};

}  // namespace tidal
