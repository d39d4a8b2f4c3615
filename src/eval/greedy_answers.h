// One prompt, answered greedily by several plans at once.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "text/tokenizer.h"

namespace tidal {

/// How a question behind a document gets into the cache.
enum class QuestionAs {
  Sparse,  ///< token by token, decoded by the plan
  Dense,   ///< as part of the prefill, whatever the plan
};

/// sparse or dense.
const char* to_string(QuestionAs how);

/// Who answers, and how it is asked.
struct AnswerCase {
  const Plan* plan = nullptr;
  QuestionAs question = QuestionAs::Sparse;
};

/// Where an answer ends if the model does not end it.
struct AnswerLimit {
  int tokens = 0;           ///< at most so many, at least 1
  bool at_newline = false;  ///< at a token that is a line break, unless it is the first
};

struct GreedyAnswer {
  std::string text;        ///< may end inside a UTF-8 character
  int tokens = 0;          ///< without the one that ends the answer
  bool ended = false;      ///< by the model, not by the limit
  int steps = 0;           ///< decode steps, of the question and of the answer
  int64_t bytes_read = 0;  ///< by these steps: weights, and K/V by the plan
};

/// Positions that the pool needs beside those of the document for `cases` cases at once.
int64_t greedy_answer_tokens(int cases, int question, int most);

/// Asks `question` behind `document`, which stays as it is, and answers up to the limit or a token that ends an answer:
/// each case on a fork of its own, up to engine.options().sequences in a batch. A case gets what it gets alone.
/// `step(sequences)` is called after every decode step; what it throws ends the run. Throws Error for an empty
/// question, a plan that does not fit the model, a context that is too short and a pool without room.
std::vector<GreedyAnswer> greedy_answers(Engine& engine, const Tokenizer& tokenizer, const Sequence& document,
                                         std::span<const Token> question, std::span<const AnswerCase> cases,
                                         AnswerLimit limit, const std::function<void(int sequences)>& step = {});

}  // namespace tidal
