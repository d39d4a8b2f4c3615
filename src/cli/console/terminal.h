// What depends on whether a person is watching: progress, colour.
#pragma once

#include <cstdio>
#include <string>

namespace tidal {

/// True when the stream is a terminal.
bool is_terminal(std::FILE* stream);
/// True when text to the stream may be coloured: it is a terminal and NO_COLOR is not set (no-color.org).
bool wants_colour(std::FILE* stream);

/// One line on stderr that says what is going on and is overwritten by the next; nothing at all when stderr is no
/// terminal. Gone when destroyed.
class StatusLine {
 public:
  StatusLine() : shown_(is_terminal(stderr)) {}
  ~StatusLine() { clear(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  void show(const std::string& text) const;
  void clear() const;

 private:
  bool shown_;
};

}  // namespace tidal
