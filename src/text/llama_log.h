// What libllama has to say: it must not reach the user's terminal on its own, but its errors belong into ours.
#pragma once

#include <string>
#include <vector>

namespace tidal {

/// Silences the log of libllama and ggml from the first one on, for the whole process, and collects the errors and the
/// warnings that are logged while it lives. One at a time.
class LlamaErrors {
 public:
  LlamaErrors();
  LlamaErrors(const LlamaErrors&) = delete;
  LlamaErrors& operator=(const LlamaErrors&) = delete;

  /// The first error in one line, without libllama's name of a function; "" when there was none.
  std::string first() const;
  /// The warnings as first() has an error, each once.
  std::vector<std::string> warnings() const;
};

/// Collects what is written to file descriptor 2 while it lives: libllama reports a grammar's errors there and nowhere
/// else. Of the whole process, so keep it short. One at a time. Collects nothing where that cannot be arranged.
class CapturedStderr {
 public:
  CapturedStderr();
  ~CapturedStderr();
  CapturedStderr(const CapturedStderr&) = delete;
  CapturedStderr& operator=(const CapturedStderr&) = delete;

  /// What was written so far, in one line, without libllama's name of a function.
  std::string text() const;

 private:
  int file_ = -1;      // in memory, receives what is written
  int original_ = -1;  // where it went before
};

}  // namespace tidal
