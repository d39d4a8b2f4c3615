#include "cli/options/window_options.h"

#include <fmt/core.h>

#include "cli/console/output.h"

namespace tidal {

void add_window_option(CLI::App& app, bool& whole, const char* group) {
  CLI::Option* option =
      app.add_flag("--swa-full", whole,
                   "Layers with a window keep K and V of the whole context, so that a text can be cut "
                   "back to any length and nothing is computed again")
          ->envname("TIDAL_SWA_FULL");
  if (*group) option->group(group);
}

void tell_whole_windows(std::string_view flag, const Hyperparameters& hp) {
  if (hp.largest_window() > 0) note(fmt::format("{}: files hold the K/V of whole contexts, --swa-full is on", flag));
}

}  // namespace tidal
