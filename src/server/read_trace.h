// What one answer reads, with the text of the positions that it reads.
#pragma once

#include <optional>
#include <vector>

#include "engine/read_counts.h"
#include "report/inspect_page.h"
#include "text/tokenizer.h"

namespace tidal::server {

/// What came new of it.
struct Reads {
  int prompt = 0;                   ///< positions of the prompt
  int first = 0;                    ///< position of the first text
  std::vector<TextSpan> texts;      ///< of positions whose text was not told yet, control tokens by their names
  std::optional<StepReads> step{};  ///< what a decode step read
};

/// The texts of an answer's positions, each given once, in whole characters. Only the scheduler's thread has it.
class ReadTrace {
 public:
  /// `tokenizer` must outlive the trace.
  ReadTrace(const Tokenizer& tokenizer, std::vector<Token> prompt)
      : tokenizer_(tokenizer), tokens_(std::move(prompt)), prompt_(tokens_.size()) {}

  /// The next token of the text.
  void add(Token token) { tokens_.push_back(token); }
  /// Texts of the positions before `end`, as far as they were not given yet and make whole characters; no more than
  /// kMost positions, the others with the next call.
  Reads texts_before(size_t end);
  /// The same of all positions, at the end of the answer: a character that is not whole, too. Until done().
  Reads rest();
  bool done() const { return given_ == tokens_.size(); }

  static constexpr size_t kMost = 4096;

 private:
  Reads take(size_t end, bool last);

  const Tokenizer& tokenizer_;
  std::vector<Token> tokens_;  // prompt and text
  size_t prompt_;
  size_t given_ = 0;  // of them, whose text was given
};

}  // namespace tidal::server
