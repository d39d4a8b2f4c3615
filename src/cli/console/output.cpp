#include "cli/console/output.h"

#include <fmt/core.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "cli/console/terminal.h"

namespace tidal {
namespace {

[[noreturn]] void cannot_write() {
  throw OutputError(fmt::format("stdout: cannot be written: {}", std::strerror(errno)));
}

}  // namespace

void write_out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) cannot_write();
}

void finish_out() {
  if (!std::cout.flush() || std::fflush(stdout) != 0 || std::ferror(stdout)) cannot_write();
}

void note(const std::string& text) {
  const bool colour = wants_colour(stderr);
  fmt::print(stderr, "{}{}{}\n", colour ? "\033[2m" : "", text, colour ? "\033[0m" : "");
}

void warn(const std::string& text) { fmt::print(stderr, "tidal: warning: {}\n", text); }

void warn_of_long_context(int64_t context, int trained) {
  if (context <= trained) return;
  warn(fmt::format("a context of {} is longer than the {} that the model was trained for", context, trained));
}

}  // namespace tidal
