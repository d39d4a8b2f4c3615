// The grid of `tidal eval needle`: what is asked, the rows of the results, table and heat maps.
#pragma once

#include <string>
#include <vector>

#include "cli/eval/session.h"
#include "eval/greedy_answers.h"

namespace tidal {

struct NeedleGrid {
  std::vector<int> lengths;           ///< tokens of a prompt, ascending
  std::vector<double> depths;         ///< shares of the text before the needle, ascending
  std::vector<QuestionAs> questions;  ///< how every question is asked
  int keys = 1;                       ///< prompts of a length and depth
};

/// From the flags' words: lengths with commas; depths in percent with commas or a percent sign, or how many; sparse,
/// dense or both. Throws Error naming the flag that is wrong.
NeedleGrid needle_grid(const std::string& lengths, const std::string& depths, const std::string& question, int keys);

/// Who answers a prompt.
struct NeedleCase {
  const EvalPlan* plan = nullptr;
  QuestionAs question = QuestionAs::Sparse;
};

/// The fields that find a row: of the prompt, of the case, and of both.
ResultFile::Json needle_prompt_key(int length, double depth, int key);
ResultFile::Json needle_case_key(const NeedleCase& which);
ResultFile::Json needle_key(int length, double depth, int key, const NeedleCase& which);

/// Share of the keys found, with its standard error, by plan, question and length. All rows must be there.
std::string needle_table(const EvalSession& session, const NeedleGrid& grid);
/// Heat maps of depth and length, one for every plan and way of asking.
std::string needle_svg(const EvalSession& session, const NeedleGrid& grid, const std::string& kind);

}  // namespace tidal
