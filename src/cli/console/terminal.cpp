#include "cli/console/terminal.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdlib>

namespace tidal {

bool is_terminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

bool wants_colour(std::FILE* stream) {
  const char* refused = std::getenv("NO_COLOR");
  return is_terminal(stream) && (!refused || *refused == '\0');
}

void StatusLine::show(const std::string& text) const {
  if (!shown_) return;
  fmt::print(stderr, "\r\033[K{}", text);  // back to the start, erase to the end
  std::fflush(stderr);
}

void StatusLine::clear() const { show(""); }

}  // namespace tidal
