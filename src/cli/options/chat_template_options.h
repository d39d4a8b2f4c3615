// Which chat template a command applies.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "text/tokenizer.h"

namespace tidal {

struct ChatTemplateOptions {
  std::string choice;     ///< a name of libllama's or a file of Jinja; "": the model's own
  std::string variables;  ///< a JSON object; "": none
};

/// Adds --chat-template and --chat-template-kwargs. `options` must outlive the parsing.
void add_chat_template_options(CLI::App& app, ChatTemplateOptions& options);
/// Gives the tokenizer the template that the flags name. Throws Error as Tokenizer::set_chat_template() does.
void use_chat_template(Tokenizer& tokenizer, const ChatTemplateOptions& options);
/// Where a template is going to be applied: warns when this build cannot render it.
void warn_about_chat_template(const Tokenizer& tokenizer);

}  // namespace tidal
