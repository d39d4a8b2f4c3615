// The evaluations of `tidal eval`. Each adds itself as a command and runs when it is chosen.
#pragma once

#include <CLI/CLI.hpp>

namespace tidal {

CLI::App* add_eval_exact(CLI::App& eval);
CLI::App* add_eval_longbench(CLI::App& eval);
CLI::App* add_eval_needle(CLI::App& eval);
CLI::App* add_eval_ppl(CLI::App& eval);
CLI::App* add_eval_recall(CLI::App& eval);
CLI::App* add_eval_ruler(CLI::App& eval);

/// Throws Error naming `flag` when `value` is below `least`.
void need_at_least(const char* flag, int64_t value, int64_t least);

}  // namespace tidal
