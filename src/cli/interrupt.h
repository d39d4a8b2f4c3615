// Ctrl-C that stops the work but not the program.
#pragma once

namespace tidal {

/// While one lives, the first Ctrl-C (SIGINT) sets a flag and the second ends the program. One at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  bool raised() const;
};

}  // namespace tidal
