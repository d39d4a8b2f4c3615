// Tasks after RULER (Hsieh et al. 2024, arXiv 2404.06654), in words of our own, with the paper's scoring.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/splitmix.h"
#include "text/tokenizer.h"

namespace tidal {

enum class RulerTask : uint8_t {
  MultiKey,          ///< several keys with a number each, one of which is asked for
  MultiValue,        ///< one key with several numbers, all of which are asked for
  MultiQuery,        ///< several keys with a number each, all of which are asked for
  VariableTracking,  ///< variables that are given a number, or the value of an earlier one: which ones have it?
  CommonWords,       ///< the words that come most often in a list
};

/// The paper's names: niah_multikey, niah_multivalue, niah_multiquery, vt, cwe.
const char* to_string(RulerTask task);
/// Of all tasks.
std::vector<std::string> ruler_task_names();
/// Throws Error listing the known words for any other.
RulerTask ruler_task_from(const std::string& word);

/// How much a prompt hides; each at least 1. The defaults are the paper's.
struct RulerSizes {
  int needles = 4;  ///< keys, or values, of a prompt
  int chains = 1;   ///< of variables, of which one is asked for
  int hops = 4;     ///< assignments behind the first one of a chain
  int common = 10;  ///< words that are asked for
};

/// Most that RulerSizes may ask for: there are no more keys, and what is hidden has so many depths.
constexpr int kRulerDepths = 40;

/// What one prompt asks.
struct RulerCase {
  std::string head;                 ///< in front of everything
  std::vector<std::string> hidden;  ///< sentences, in the order in which they are hidden in a text
  std::string question;             ///< behind the text; the answer goes on where it ends
  std::vector<std::string> wanted;  ///< what the answer has to name, each once
};

/// Of any task but CommonWords: another case for every seed, length and prompt, the same for the same numbers. Throws
/// Error for sizes out of range.
RulerCase ruler_case(RulerTask task, const RulerSizes& sizes, uint64_t seed, int length, int prompt);

/// Share of the wanted strings that are in what the model said, whatever the case of letters: the paper's
/// string_match_all of one prompt.
double ruler_score(std::span<const std::string> wanted, std::string_view said);
/// Standard error of the mean of scores between 0 and 1, with a 0 and a 1 more, so that prompts that all score the same
/// are not taken for certain. Where every score is 0 or 1 it is share_error(). 0 for none.
double ruler_error(std::span<const double> scores);

/// A numbered list in which some words come more often than others.
struct WordList {
  std::string text;
  std::vector<std::string> common;
};

/// How often words come in a list for a prompt of so many tokens: the paper's numbers.
struct WordCounts {
  int common = 0, others = 0;
};
constexpr WordCounts word_counts(int length) { return length < 4096 ? WordCounts{6, 1} : WordCounts{30, 3}; }

/// `common` words and `others` more, drawn from `words`, each as often as `counts` says, in an order by `random`.
/// Throws Error when `words` are too few.
WordList numbered_words(std::span<const std::string> words, int common, int others, WordCounts counts, Splitmix random);
/// Lower-case words of a text, five letters or more, that are one token behind a space; each once. Words that are part
/// of another one are left out: they would be found where only that one was said.
std::vector<std::string> single_token_words(const Tokenizer& tokenizer, std::string_view text);

}  // namespace tidal
