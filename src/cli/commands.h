// The commands of the program. Each adds itself to the program's flags and runs when it is chosen.
#pragma once

#include <CLI/CLI.hpp>

namespace tidal {

void add_bench_command(CLI::App& app);
void add_calibrate_command(CLI::App& app);
void add_compare_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_info_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_run_command(CLI::App& app);
void add_serve_command(CLI::App& app);

}  // namespace tidal
