#include "cli/eval/places.h"

#include "cli/eval/commands.h"
#include "core/utf8.h"

namespace tidal {
namespace {

TextTokens read_text(const EvalSession& session, const PlaceFlags& flags) {
  need_at_least("--prefix", flags.prefix, 1);
  need_at_least("--steps", flags.steps, 1);
  need_at_least("--places", flags.places, 1);
  session.check_context(int64_t{flags.prefix} + flags.steps);
  return session.read_text(flags.text);
}

}  // namespace

void add_place_flags(CLI::App& app, PlaceFlags& flags) {
  app.add_option("-f,--file", flags.text, "The text (default: kjv.txt beside the model)")->type_name("FILE");
  app.add_option("--prefix", flags.prefix, "Tokens before the first step, prefilled densely")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--steps", flags.steps, "Tokens decoded one by one")->type_name("N")->capture_default_str();
  app.add_option("--places", flags.places, "Places of the text, spread evenly over it")
      ->type_name("N")
      ->capture_default_str();
}

Places::Places(EvalSession& session, const std::string& task, const PlaceFlags& flags, int extra)
    : text_(read_text(session, flags)),
      length_(int64_t{flags.prefix} + flags.steps + extra),
      firsts_(text_.places(flags.places, length_)) {
  session.open(task, {{"text", file_name(text_.name())},
                      {"text_hash", text_.hash()},
                      {"prefix", flags.prefix},
                      {"steps", flags.steps}});
}

}  // namespace tidal
