// Ctrl-C, or a kill, that stops the work but not the program.
#pragma once

namespace tidal {

/// Thrown by a command that a signal ended before its work was done; what it has written so far stands. The program's
/// exit status is then 128 + signal, as shells have it.
struct Stopped {
  int signal;
};

/// Lets a thread of its own receive SIGINT (Ctrl-C), SIGTERM and SIGHUP for the whole process; without an Interrupt
/// they act as ever. No other thread may: oneDNN's kernels keep pointers into the heap in the stack pointer, below
/// which the kernel would put the frame of a handler. Once, before any other thread is started.
void receive_signals();

/// While one lives, the first of these signals sets a flag, and a second one ends the program. What was ignored when
/// the program began (SIGHUP under nohup) stays so, but for SIGINT, which shells ignore in the background. One at a
/// time.
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
