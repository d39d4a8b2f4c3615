// Needles in a haystack: a sentence hidden in a long text, and the question that asks for it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "eval/text_places.h"
#include "text/tokenizer.h"

namespace tidal {

enum class NeedleKind {
  PassKey,   ///< five digits, which no text helps to guess
  Sentence,  ///< what is best to do in a city, in words
};

/// passkey or sentence.
const char* to_string(NeedleKind kind);
/// Throws Error listing the known words for any other.
NeedleKind needle_kind_from(const std::string& word);

struct Needle {
  std::string sentence;  ///< hidden in the text
  std::string question;  ///< behind the text; the answer goes on where it ends
  std::string answer;    ///< what the model has to say
};

/// The needle of one cell of the grid: another for every one, the same for the same numbers.
Needle make_needle(NeedleKind kind, uint64_t seed, int length, double depth, int key);

/// Whether what the model said begins with the answer, leaving aside spaces before it and, in words, the case of
/// letters.
bool finds_needle(const Needle& needle, const std::string& said);

/// A needle hidden in a text, in tokens.
struct NeedlePrompt {
  Needle needle;
  std::vector<Token> document;  ///< special tokens, text, the sentence, text
  std::vector<Token> question;
  int answer_tokens = 0;  ///< enough for the answer and a space
};

/// The prompt of `length` tokens, question included, with the sentence at `depth` (0: before all text, 1: behind it) of
/// the text from its token `first` on. Throws Error when the needle and its question are longer than `length`.
NeedlePrompt needle_prompt(const Tokenizer& tokenizer, const TextTokens& text, int64_t first, const Needle& needle,
                           int length, double depth);

}  // namespace tidal
