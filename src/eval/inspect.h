// Watches what a model reads of a document while it answers a question about it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "report/inspect_page.h"
#include "text/tokenizer.h"

namespace tidal {

/// A document and the question about it that follows, in tokens.
struct InspectPrompt {
  std::vector<Token> document;  ///< with what the chat template puts before it
  std::vector<Token> question;  ///< with what the chat template puts behind it
};

/// The prompt of both texts, trimmed: `chat`: as one message of the user by the model's chat template, else as they
/// are. Throws Error for empty texts, for text that is not UTF-8, and for a template that changes the text.
InspectPrompt inspect_prompt(const Tokenizer& tokenizer, const std::string& document, const std::string& question,
                             bool chat);

struct InspectOptions {
  int answer = 64;              ///< most tokens of it, at least 1; fewer where the engine's context ends
  bool dense_question = false;  ///< the question is part of the prefill instead of decoded token by token
  /// Above 0: exact mode answers the same prompt too, with this many drafts a round. The engine's pool must have room
  /// for question and answer a second time, each in blocks of its own, and its plan must not correct.
  int exact_drafts = 0;
  /// After every chunk of the prefill and every decode step: steps and tokens so far. What it throws ends the run.
  std::function<void(const char* what, int done, int total)> progress;
};

struct Inspection {
  /// All but the model's name and the facts.
  InspectReport report;
  std::string answer;          ///< its text; may end inside a UTF-8 character
  double prefill_seconds = 0;  ///< of the tokens before report.first_step
  double decode_seconds = 0;   ///< of the steps, measuring the mass included
};

/// Prefills the document densely, decodes the question by the engine's plan and answers greedily until the model ends
/// the answer. Watches every decode step. Throws Error when the prompt and one token of an answer are longer than the
/// engine's context.
Inspection inspect(Engine& engine, const Tokenizer& tokenizer, const InspectPrompt& prompt,
                   const InspectOptions& options);

}  // namespace tidal
