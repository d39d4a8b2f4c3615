// Prompts of RULER's tasks in tokens.
#pragma once

#include <string>
#include <vector>

#include "eval/ruler.h"
#include "eval/text_places.h"

namespace tidal {

struct RulerPrompt {
  std::vector<Token> document;  ///< special tokens, the head, and the text with what it hides, or the list
  std::vector<Token> question;
  std::vector<std::string> wanted;
  int answer_tokens = 0;  ///< half more than naming all that is wanted takes, and a little
};

/// Texts that prompts are made of.
struct RulerTexts {
  const TextTokens* haystack = nullptr;
  std::vector<std::string> words;  ///< for lists; of single_token_words()
};

/// A few sentences again and again, at least `tokens` tokens of them: the haystack that the paper calls noise.
TextTokens noise_text(const Tokenizer& tokenizer, int64_t tokens);

/// The prompt of `length` tokens, question included, that `task` asks by a seed and its number. What it hides stands at
/// some of kRulerDepths evenly spaced depths of the haystack from its token `first` on. A list has as many words as fit
/// in; what is left of the length is text in front. Throws Error when it does not fit in `length` and for sizes out of
/// range.
RulerPrompt ruler_prompt(const Tokenizer& tokenizer, const RulerTexts& texts, int64_t first, RulerTask task,
                         const RulerSizes& sizes, uint64_t seed, int length, int prompt);

}  // namespace tidal
