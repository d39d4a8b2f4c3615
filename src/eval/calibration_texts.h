// What a calibration decodes: stretches of a text, and retrieval prompts made from it.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace tidal {

/// A text that is prefilled, and the tokens that are then decoded one by one.
struct CalibrationText {
  std::vector<Token> prefix;
  std::vector<Token> steps;
  bool retrieval = false;  ///< the steps are a question about a sentence in the prefix, and its answer
  int parent = -1;         ///< text whose prefix begins like this one's; -1: none
  int shared = 0;          ///< how many tokens of the parent's prefix
};

struct CalibrationShape {
  int prefix = 0;    ///< tokens before the first step; 0: 4096, or half of a text that is too short for that
  int steps = 80;    ///< tokens decoded at each place
  int places = 6;    ///< of the text, for the choice
  int prompts = 3;   ///< retrieval prompts, for the choice
  int held_out = 2;  ///< further places, whose steps nothing is chosen by
  /// How often `steps` tokens are decoded at each place, one stretch behind the other, each from a clean cache. Those
  /// after the first cost no prefill to speak of; they are for the last rung of the search.
  int stretches = 2;
};

/// The texts of a calibration: `first` of them are first stretches and prompts, `choice` are to choose by, those held
/// out stand behind them.
struct CalibrationTexts {
  std::vector<CalibrationText> texts;
  int first = 0;
  int choice = 0;
  int prefix = 0;  ///< tokens of every prefix
};

/// Cuts `text` into places that are spread evenly over it, those held out evenly among them; no token is decoded at two
/// places. A retrieval prompt is a place with a pass key hidden in it, each at another depth. They are mixed in such a
/// way that the first few texts hold some of both. `name` stands in messages, `budget` is what a prefix must exceed by
/// far. Throws Error for numbers out of range and, saying how many tokens are needed, for a text that is too short.
CalibrationTexts calibration_texts(const Tokenizer& tokenizer, std::string_view text, const std::string& name,
                                   const CalibrationShape& shape, int budget);

/// Tokens that a text must have: a prefix (of twice the budget at least, when none is asked for) and all steps.
int64_t calibration_tokens_needed(const CalibrationShape& shape, int budget);

/// First tokens of `count` places of `size` tokens in a text of `length`, spread evenly from its start to its end.
/// count * size <= length is not needed: places may overlap.
std::vector<int64_t> spread_places(int count, int64_t size, int64_t length);

}  // namespace tidal
