// Where in a long text an evaluation reads.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace tidal {

/// A text in tokens. A model that wants a token in front of everything (BOS) gets it in front of every stretch.
class TextTokens {
 public:
  /// Throws Error `name: ...` for an empty text and for text that is not UTF-8.
  TextTokens(const Tokenizer& tokenizer, std::string_view text, std::string name);

  const std::string& name() const { return name_; }
  int64_t size() const { return static_cast<int64_t>(text_.size()); }
  /// Tells this text, in this vocabulary, from others (FNV-1a over its tokens).
  uint64_t hash() const;
  /// Tokens in front of every stretch.
  int64_t special() const { return static_cast<int64_t>(special_.size()); }
  /// `count` tokens, the special ones among them, of the text from its token `first` on. The text must hold them.
  std::vector<Token> stretch(int64_t first, int64_t count) const;

  /// Where `count` stretches of `length` tokens begin: in the middle of as many equal parts of the text, or earlier
  /// where the rest of a part is too short. Throws Error, saying what the text holds and what is needed, when they do
  /// not fit in without overlap.
  std::vector<int64_t> places(int count, int64_t length) const;

 private:
  std::string name_;
  std::vector<Token> special_, text_;
};

}  // namespace tidal
