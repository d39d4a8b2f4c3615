#include "cli/run/options.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "core/error.h"
#include "core/utf8.h"

namespace tidal {
namespace {

std::string read_all(std::istream& stream, const std::string& name) {
  errno = 0;
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  if (stream.bad() || errno == EISDIR || errno == EIO) fail("{}: cannot be read: {}", name, std::strerror(errno));
  return text;
}

std::string read_file(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) fail("{}: is a directory, expected a file of text", path);
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("{}: cannot be opened: {}", path, std::strerror(errno));
  std::string text = read_all(file, path);
  check_text(text, path);
  return text;
}

void add_text_options(CLI::App& app, RunOptions& options) {
  const char* group = "Text";
  options.prompt_option = app.add_option("-p,--prompt", options.prompt, "Prompt")->type_name("TEXT")->group(group);
  options.prompt_file_option = app.add_option("-f,--file", options.prompt_file, "Prompt from a file (default: stdin)")
                                   ->type_name("FILE")
                                   ->group(group);
  app.add_flag("--chat,--conversation", options.chat, "Apply the model's chat template to the prompt")->group(group);
  app.add_flag("-i,--interactive", options.interactive,
               "Chat turn by turn (default when stdin is a terminal and there is no prompt)")
      ->group(group);
  app.add_option("--system,--system-prompt", options.system, "System message of a chat; implies --chat")
      ->envname("TIDAL_SYSTEM")
      ->type_name("TEXT")
      ->group(group);
  add_chat_template_options(app, options.chat_template);
  app.add_option("--session,--prompt-cache", options.session,
                 "Begin with what this file has of the text, and write the text with its K/V there at the end")
      ->envname("TIDAL_SESSION")
      ->type_name("FILE")
      ->group(group);
  app.add_option("-n,--n-predict,--predict", options.predict, "Most tokens of an answer, -1 until it ends")
      ->envname("TIDAL_N_PREDICT")
      ->type_name("N")
      ->capture_default_str()
      ->group(group);
  app.add_flag("--ignore-eos", options.ignore_end, "Never end an answer by an end-of-generation token")->group(group);
}

void add_choice_options(CLI::App& app, RunOptions& options) {
  add_sampling_options(app, options.sampler, options.seed, "Sampling");
  app.add_option("--grammar", options.grammar, "Grammar (GBNF) of the answer")->type_name("TEXT")->group("Sampling");
  app.add_option("--grammar-file", options.grammar_file, "Grammar from a file")->type_name("FILE")->group("Sampling");
}

}  // namespace

void add_run_options(CLI::App& app, RunOptions& options) {
  app.add_option("-m,--model", options.model, "GGUF model file")->envname("TIDAL_MODEL")->type_name("FILE")->required();
  app.add_option("-c,--ctx-size", options.context,
                 "Most tokens of prompt and answers, 0 for what the model was trained for (default: as needed, at most "
                 "that)")
      ->envname("TIDAL_CTX_SIZE")
      ->type_name("N");
  app.add_option("-t,--threads", options.threads, "Threads (default: all processors)")
      ->envname("TIDAL_THREADS")
      ->type_name("N");
  app.add_option("--ubatch-size", options.chunk, "Tokens of one prefill pass (default: 512, on a GPU 2048)")
      ->envname("TIDAL_UBATCH_SIZE")
      ->type_name("N");
  add_window_option(app, options.whole_windows);
  add_backend_options(app, options.backend);
  add_kv_options(app, options.kv);
  add_text_options(app, options);
  add_choice_options(app, options);
  add_attention_option(app, options.plan, "full|tidal|sketch");
  add_exact_option(app, options.exact);
  add_plan_options(app, options.plan);
  app.add_option("--save-plan", options.save_plan, "Write the plan that is used as JSON")
      ->type_name("FILE")
      ->group("Sparse attention");
}

void check(const RunOptions& options) {
  if (options.prompt_option->count() > 0 && options.prompt_file_option->count() > 0) {
    fail("prompt: give either -p or -f, not both");
  }
  if (options.predict < -1) fail("--n-predict: {} given, expected -1 or more", options.predict);
  if (options.context && *options.context < 0) fail("--ctx-size: {} given, expected 0 or more", *options.context);
  if (options.chunk && *options.chunk < 1) {
    fail("--ubatch-size: {} given, at least 1 is needed", *options.chunk);
  }
  check_sampling(options.sampler, options.seed);
  if (!options.grammar.empty() && !options.grammar_file.empty()) {
    fail("grammar: give either --grammar or --grammar-file, not both");
  }
  check_text(options.system, "--system");
  check_kind(options.plan);
  check_exact(options.exact, options.plan);
}

std::string read_prompt(const RunOptions& options) {
  std::string text = options.prompt;
  if (options.prompt_option->count() == 0) {
    const bool file = options.prompt_file_option->count() > 0;
    text = file ? read_file(options.prompt_file) : read_all(std::cin, "stdin");
    if (!file) check_text(text, "stdin");
    if (text.ends_with('\n')) text.pop_back();
  } else {
    check_text(text, "prompt");
  }
  if (text.empty()) fail("prompt: it is empty, expected some text from -p, -f or stdin");
  return text;
}

SamplerOptions sampler_options(const RunOptions& options, int context) {
  SamplerOptions sampler = with_context(options.sampler, options.seed, context);
  sampler.ignore_end = options.ignore_end;
  sampler.grammar = options.grammar;
  if (!options.grammar_file.empty()) {
    sampler.grammar = read_file(options.grammar_file);
    if (sampler.grammar.empty()) fail("{}: is empty, expected a grammar (GBNF)", options.grammar_file);
  }
  return sampler;
}

}  // namespace tidal
