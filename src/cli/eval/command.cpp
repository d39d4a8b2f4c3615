#include "cli/commands.h"
#include "cli/eval/commands.h"
#include "core/error.h"

namespace tidal {

void need_at_least(const char* flag, int64_t value, int64_t least) {
  if (value < least) fail("{}: {} given, at least {} is needed", flag, value, least);
}

void add_eval_command(CLI::App& app) {
  CLI::App* eval = app.add_subcommand(
      "eval", "Measure what sparse decoding loses: several plans side by side, full attention beside them");
  eval->require_subcommand(1);
  // As main() does for the commands: only the chosen one reads its environment.
  for (CLI::App* command : {add_eval_needle(*eval), add_eval_ppl(*eval), add_eval_recall(*eval), add_eval_exact(*eval),
                            add_eval_longbench(*eval), add_eval_ruler(*eval)}) {
    command->parse_complete_callback([] {});
  }
}

}  // namespace tidal
