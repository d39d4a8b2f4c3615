// LongBench (v1, github.com/THUDM/LongBench): reading its files, asking its questions, scoring answers.
//
//   const LongBenchData data = read_longbench("data", {});
//   for (const LongBenchExample& example : data.examples) {
//     tokens = longbench_prompt(example, tokenizer, limit);  // then up to example.task->max_new_tokens greedy tokens
//     score = longbench_score(example, answer);
//   }
#pragma once

#include <string>
#include <vector>

#include "eval/longbench_tasks.h"
#include "text/tokenizer.h"

namespace tidal {

struct LongBenchExample {
  const LongBenchTask* task = nullptr;
  std::string file;  ///< NAME of NAME.jsonl: the task's name, with _e in LongBench-E
  int line = 0;      ///< in the file, from 1
  std::string id;
  std::string dataset;  ///< as the row says
  std::string input;    ///< the question; may be empty
  std::string context;
  std::vector<std::string> answers;  ///< an answer is as good as the one it fits best
  std::vector<std::string> classes;  ///< all_classes; of classification tasks only
  int length = 0;                    ///< words (English and code) or characters (Chinese), as the file says
};

struct LongBenchOptions {
  std::vector<std::string> tasks = {};  ///< names; empty: all that the folder has
  bool extended = false;                ///< LongBench-E, NAME_e.jsonl, instead of NAME.jsonl
};

struct LongBenchData {
  std::vector<LongBenchExample> examples;  ///< by task in the benchmark's order, in the files' order
  std::vector<std::string> errors;         ///< a sentence for each file that is broken; the rows before are in examples
  std::vector<std::string> notes;          ///< sentences on files of refused or unknown tasks, and such like
};

/// Reads the *.jsonl files of a folder. Throws Error when the folder cannot be read or has no file that can be scored,
/// when a task of the options is unknown, refused (its metric needs a Chinese word cutter) or not there.
LongBenchData read_longbench(const std::string& folder, const LongBenchOptions& options);

/// The text of the prompt: the task's, with the context and the input in their places.
std::string longbench_prompt_text(const LongBenchExample& example);

/// Whether the prompt goes through the model's chat template: not for few-shot and code tasks, as in pred.py, nor where
/// the file has no template.
bool longbench_uses_chat(const LongBenchTask& task, const Tokenizer& tokenizer);

/// The prompt as tokens, as pred.py makes it: a prompt of more than `limit` tokens becomes the text of its first and
/// last limit / 2 tokens; then comes the chat template, whose tokens are not counted. Leave room for these (about 50)
/// and the answer. Throws Error for a limit below 2.
std::vector<Token> longbench_prompt(const LongBenchExample& example, const Tokenizer& tokenizer, int limit);

/// The score of an answer, 0 to 1: the best over the example's answers, 0 when it has none. The benchmark's figure for
/// a task is 100 times the mean, rounded to two digits. Throws Error `file, line N: ...` when a reference is no answer.
double longbench_score(const LongBenchExample& example, const std::string& answer);

/// The group in which LongBench-E reports an example: "0-4k", "4-8k" or "8k+".
const char* longbench_length_group(int length);

}  // namespace tidal
