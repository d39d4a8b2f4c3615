// From the tokens of an answer to its text, up to a stop string.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/utf8.h"

namespace tidal {

/// Holds back what is no whole character yet and what a stop string may begin with, so that none of one is ever given
/// out.
class AnswerText {
 public:
  /// Texts that end the answer; empty ones are of no account.
  explicit AnswerText(std::vector<std::string> stops = {});

  /// Adds the bytes of one token; returns the text that is certain by now, up to a stop string where one is complete.
  std::string push(std::string_view piece);
  /// What is still held back, at the end of an answer. "" after a stop string.
  std::string finish();
  /// True once a stop string was complete: nothing after it is part of the answer.
  bool stopped() const { return !stop_.empty(); }
  /// Which one; "" without.
  const std::string& stop() const { return stop_; }

 private:
  Utf8Stream characters_;
  std::vector<std::string> stops_;
  std::string held_;  // whole characters that may begin a stop string
  std::string stop_;
};

}  // namespace tidal
