// The program: its commands, and what becomes of their errors.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <new>

#include "cli/commands.h"
#include "cli/console/interrupt.h"
#include "cli/console/output.h"
#include "cli/console/wait_policy.h"
#include "cli/options/backend_options.h"
#include "core/error.h"

namespace {

constexpr int kFailed = 1;
constexpr int kSignalled = 128;  // and the signal, as shells have it

int complain(const std::string& what) {
  fmt::print(stderr, "tidal: {}\n", what);
  return kFailed;
}

int run(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) tidal::write_out(app.help());
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help and --version
    const auto commands = app.get_subcommands();
    const std::string command = commands.empty() ? "" : commands.front()->get_name() + " ";
    return complain(fmt::format("{} (tidal {}--help lists the flags)", error.what(), command));
  } catch (const tidal::Stopped& stopped) {
    return kSignalled + stopped.signal;
  } catch (const tidal::Error& error) {
    return complain(error.what());
  } catch (const std::bad_alloc&) {
    return complain("out of memory; a shorter context (-c) or fewer sequences need less");
  } catch (const std::exception& error) {
    return complain(fmt::format("unexpected error: {}", error.what()));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  tidal::wait_shortly(argv);
  tidal::receive_signals();
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is told of like a full disk
  CLI::App app("Decodes long contexts fast with position persistent sparse attention.", "tidal");
  app.set_version_flag("--version", std::string("tidal ") + TIDAL_VERSION, "Print the version and leave");
  app.require_subcommand(0, 1);
  tidal::add_run_command(app);
#ifdef TIDAL_SERVER
  tidal::add_serve_command(app);
#endif
  tidal::add_info_command(app);
  tidal::add_inspect_command(app);
  tidal::add_bench_command(app);
  tidal::add_compare_command(app);
  tidal::add_calibrate_command(app);
  tidal::add_eval_command(app);
  // A command whose parsing completes on its own reads its environment only when it is chosen; CLI11 would otherwise
  // read that of all commands.
  for (CLI::App* command : app.get_subcommands({})) command->parse_complete_callback([] {});
  tidal::spell_out_short_flags(argc, argv);
  const int status = run(app, argc, argv);
  try {
    tidal::finish_out();
  } catch (const tidal::Error& error) {
    return status == 0 ? complain(error.what()) : status;
  }
  return status;
}
