#include "eval/longbench.h"

#include <algorithm>

#include "core/error.h"
#include "core/utf8.h"
#include "eval/text_metrics.h"

namespace tidal {
namespace {

// Two cuts may leave parts of characters; the tokenizer takes only whole ones. As decoders of Hugging Face do, a part
// becomes one U+FFFD.
std::string with_whole_characters(std::string text) {
  std::string out;
  while (const auto wrong = find_invalid_utf8(text)) {
    out += text.substr(0, *wrong) + "\xEF\xBF\xBD";
    size_t end = *wrong + 1;
    const auto lead = static_cast<unsigned char>(text[*wrong]);
    if (lead >= 0xC2) {
      const size_t most = *wrong + (lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3);
      while (end < text.size() && end < most && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
    }
    text.erase(0, end);
  }
  return out + text;
}

double score_against(const LongBenchExample& example, std::string_view answer, const std::string& truth) {
  const LongBenchTask& task = *example.task;
  switch (task.metric) {
    case LongBenchMetric::F1: return qa_f1_score(answer, truth);
    case LongBenchMetric::RougeL: return rouge_l_score(answer, truth);
    case LongBenchMetric::Classification: return classification_score(answer, truth, example.classes);
    case LongBenchMetric::Retrieval: return retrieval_score(answer, truth, task.paragraph);
    case LongBenchMetric::Count: return count_score(answer, truth);
    case LongBenchMetric::CodeSimilarity: return code_similarity_score(answer, truth);
  }
  return 0;
}

std::string_view first_line(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return text.substr(0, text.find('\n'));
}

}  // namespace

std::string longbench_prompt_text(const LongBenchExample& example) {
  const std::string_view form = example.task->prompt;
  std::string text;
  // In one walk: braces in a context are its own.
  for (size_t at = 0; at < form.size();) {
    const size_t open = std::min(form.find('{', at), form.size());
    text += form.substr(at, open - at);
    at = open;
    for (const auto& [name, value] : {std::pair<std::string_view, const std::string&>{"{context}", example.context},
                                      std::pair<std::string_view, const std::string&>{"{input}", example.input}}) {
      if (form.substr(at, name.size()) != name) continue;
      text += value;
      at += name.size();
      break;
    }
  }
  return text;
}

bool longbench_uses_chat(const LongBenchTask& task, const Tokenizer& tokenizer) {
  return task.chat && tokenizer.has_chat_template();
}

std::vector<Token> longbench_prompt(const LongBenchExample& example, const Tokenizer& tokenizer, int limit) {
  if (limit < 2) fail("LongBench: a prompt of at most {} tokens, expected at least 2", limit);
  std::string text = longbench_prompt_text(example);
  std::vector<Token> tokens = tokenizer.encode(text, true, true);
  const bool chat = longbench_uses_chat(*example.task, tokenizer);
  if (tokens.size() <= static_cast<size_t>(limit)) {
    if (!chat) return tokens;
  } else {
    const auto half = static_cast<size_t>(limit / 2);
    const std::span<const Token> all(tokens);
    text = with_whole_characters(tokenizer.decode(all.first(half))) +
           with_whole_characters(tokenizer.decode(all.last(half)));
  }
  if (chat) {
    const ChatMessage message = {"user", text};
    text = tokenizer.apply_chat_template({&message, 1}, true);
  }
  return tokenizer.encode(text, true, true);
}

double longbench_score(const LongBenchExample& example, const std::string& answer) {
  const std::string_view counted = example.task->first_line ? first_line(answer) : std::string_view(answer);
  double best = 0;
  for (const std::string& truth : example.answers) {
    try {
      best = std::max(best, score_against(example, counted, truth));
    } catch (const Error& error) {
      fail("{}.jsonl, line {}: {}", example.file, example.line, error.what());
    }
  }
  return best;
}

const char* longbench_length_group(int length) { return length < 4000 ? "0-4k" : length < 8000 ? "4-8k" : "8k+"; }

}  // namespace tidal
