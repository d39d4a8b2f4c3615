// llama.cpp's Jinja engine (libllama-common), set up as transformers sets up Python's, with bounds on what a template
// may take. Only in builds that have found the library (TIDAL_JINJA).
#pragma once

#include <memory>
#include <span>
#include <string>

#include "core/error.h"
#include "text/chat_template.h"

namespace tidal {

/// A template has called raise_exception(); what() is its message.
class JinjaRaised : public Error {
 public:
  using Error::Error;
};

class JinjaTemplate {
 public:
  /// Throws Error without a name, as render() does: "it is not valid Jinja: ...".
  explicit JinjaTemplate(const std::string& source);
  JinjaTemplate(JinjaTemplate&&) noexcept;
  ~JinjaTemplate();

  /// The text that the template makes of a conversation. Throws JinjaRaised, and Error for anything else that goes
  /// wrong, more than 500,000 steps and text without bounds included. `more`: a JSON object of further variables, over
  /// the others; "" for none.
  std::string render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                     const ChatTemplateVariables& variables, const std::string& more) const;

 private:
  struct Program;
  std::unique_ptr<Program> program_;
};

/// Throws Error when `text` is not a JSON object.
void check_json_object(const std::string& text);

}  // namespace tidal
