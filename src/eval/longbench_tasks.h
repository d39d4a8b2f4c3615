// The tasks of LongBench (v1): what each asks, how its answers are scored and how long they may be.
#pragma once

#include <span>
#include <string_view>

namespace tidal {

enum class LongBenchMetric { F1, RougeL, Classification, Retrieval, Count, CodeSimilarity };

struct LongBenchTask {
  std::string_view name;  ///< as in NAME.jsonl
  LongBenchMetric metric;
  int max_new_tokens;
  bool chat;                ///< asked through the chat template where the model has one; false: the prompt is continued
  bool first_line;          ///< only the first line of the answer counts
  bool stop_at_newline;     ///< generation ends at a newline, as at an end token, though not with the first token
  std::string_view prompt;  ///< with {context} and {input}
  std::string_view paragraph = {};  ///< Retrieval: the word before the number of a paragraph
};

/// The tasks that are scored, in the order of the benchmark's pred.py.
std::span<const LongBenchTask> longbench_tasks();

/// nullptr for a name that is none.
const LongBenchTask* find_longbench_task(std::string_view name);

/// The tasks whose metrics cut Chinese text into words with the Python package jieba: they are refused.
std::span<const std::string_view> longbench_refused_tasks();

/// "f1", "rouge-l", "accuracy", "edit similarity".
const char* longbench_metric_name(LongBenchMetric metric);

}  // namespace tidal
