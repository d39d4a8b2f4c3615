// Whether layers with a window keep more than it.
#pragma once

#include <CLI/CLI.hpp>
#include <string_view>

#include "backend/hyperparameters.h"

namespace tidal {

/// Adds --swa-full. `whole` must outlive the parsing.
void add_window_option(CLI::App& app, bool& whole, const char* group = "");
/// For models with windows: says that a flag that keeps texts in files has --swa-full on.
void tell_whole_windows(std::string_view flag, const Hyperparameters& hp);

}  // namespace tidal
