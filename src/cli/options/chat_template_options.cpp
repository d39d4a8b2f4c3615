#include "cli/options/chat_template_options.h"

#include "cli/console/output.h"

namespace tidal {

void add_chat_template_options(CLI::App& app, ChatTemplateOptions& options) {
  app.add_option("--chat-template,--chat-template-file", options.choice,
                 "Another chat template than the model's: a file of Jinja, or the name of one that libllama has")
      ->type_name("FILE|NAME")
      ->group("Text");
  app.add_option("--chat-template-kwargs", options.variables,
                 "Variables for the chat template, such as '{\"enable_thinking\": false}'")
      ->type_name("JSON")
      ->group("Text");
}

void use_chat_template(Tokenizer& tokenizer, const ChatTemplateOptions& options) {
  if (!options.choice.empty() || !options.variables.empty()) {
    tokenizer.set_chat_template(options.choice, options.variables);
  }
}

void warn_about_chat_template(const Tokenizer& tokenizer) {
  if (!tokenizer.approximates_chat_template()) return;
  warn(
      "this build has no Jinja (libllama-common): prompts are libllama's own text for the kind of the chat template, "
      "not "
      "what the template writes");
}

}  // namespace tidal
