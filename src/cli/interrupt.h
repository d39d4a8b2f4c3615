// Ctrl-C, or a kill, that stops the work but not the program.
#pragma once

namespace tidal {

/// Thrown by a command that a signal ended before its work was done; what it has written so far stands. The program's
/// exit status is then 128 + signal, as shells have it.
struct Stopped {
  int signal;
};

/// While one lives, the first SIGINT (Ctrl-C), SIGTERM or SIGHUP sets a flag; after it each of them ends the program,
/// as if nobody listened. What was ignored when the program began (SIGHUP under nohup) stays so, but for SIGINT, which
/// shells ignore in the background. One at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  bool raised() const { return signal() != 0; }
  /// The first signal that came; 0 when there was none.
  int signal() const;
  /// Throws Stopped when one has come.
  void check() const;
};

}  // namespace tidal
