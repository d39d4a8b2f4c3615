#include "eval/ruler_prompt.h"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "core/error.h"

namespace tidal {
namespace {

constexpr std::string_view kNoise =
    "The river is long. The hill is steep. The bread is warm. Here they come. Out and home again.\n";

std::vector<Token> encode(const Tokenizer& tokenizer, const std::string& text) {
  return tokenizer.encode(text, false, false);
}

void append(std::vector<Token>& tokens, const std::vector<Token>& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
}

RulerPrompt asked(const Tokenizer& tokenizer, const std::string& question, const std::vector<std::string>& wanted) {
  RulerPrompt prompt;
  prompt.question = encode(tokenizer, question);
  prompt.wanted = wanted;
  size_t answer = 0;
  for (const std::string& one : wanted) answer += encode(tokenizer, " " + one + ",").size();
  prompt.answer_tokens = static_cast<int>(answer + answer / 2) + 8;
  return prompt;
}

void check_room(RulerTask task, int64_t own, int length) {
  if (own > length) {
    fail("{}: what it hides and asks takes {} tokens, which do not fit in a prompt of {}", to_string(task), own,
         length);
  }
}

RulerPrompt hidden_in_text(const Tokenizer& tokenizer, const TextTokens& haystack, int64_t first, RulerTask task,
                           const RulerCase& made, int length, Splitmix random) {
  RulerPrompt prompt = asked(tokenizer, made.question, made.wanted);
  const std::vector<Token> head = encode(tokenizer, made.head);
  std::vector<std::vector<Token>> hidden;
  int64_t own = haystack.special() + static_cast<int64_t>(head.size() + prompt.question.size());
  for (const std::string& sentence : made.hidden) {
    own += static_cast<int64_t>(hidden.emplace_back(encode(tokenizer, sentence)).size());
  }
  check_room(task, own, length);
  const int64_t around = length - own, special = haystack.special();
  const std::vector<Token> text = haystack.stretch(first, around + special);
  std::vector<int64_t> depths(kRulerDepths);
  std::iota(depths.begin(), depths.end(), 0);
  random.shuffle(depths);
  depths.resize(hidden.size());
  std::sort(depths.begin(), depths.end());
  prompt.document.assign(text.begin(), text.begin() + special);
  append(prompt.document, head);
  int64_t at = 0;  // of the text, behind the special tokens
  const auto copy_to = [&](int64_t end) {
    prompt.document.insert(prompt.document.end(), text.begin() + special + at, text.begin() + special + end);
    at = end;
  };
  for (size_t i = 0; i < hidden.size(); ++i) {
    copy_to(around * depths[i] / (kRulerDepths - 1));
    append(prompt.document, hidden[i]);
  }
  copy_to(around);
  return prompt;
}

RulerPrompt common_words(const Tokenizer& tokenizer, const RulerTexts& texts, int64_t first, int common, int length,
                         const Splitmix& random) {
  if (common < 1 || common > kRulerDepths) {
    fail("ruler: {} common words in a prompt, expected 1 to {}", common, kRulerDepths);
  }
  const std::string count = std::to_string(common);
  const std::vector<Token> head = encode(
      tokenizer,
      "In the following list of words some come more often than others. Remember those that come most often.\n\n");
  const std::string question = "\n\nQuestion: Which are the " + count +
                               " most common words in the list above?\nAnswer: The " + count +
                               " words that come most often in the list are:";
  const WordCounts counts = word_counts(length);
  const int64_t fixed =
      texts.haystack->special() + static_cast<int64_t>(head.size() + encode(tokenizer, question).size());
  const auto list_of = [&](int others) { return numbered_words(texts.words, common, others, counts, random); };
  const auto tokens_of = [&](int others) {
    return fixed + static_cast<int64_t>(encode(tokenizer, list_of(others).text).size());
  };
  check_room(RulerTask::CommonWords, tokens_of(0), length);
  const int most = static_cast<int>(texts.words.size()) - common;
  int fits = 0, too_many = most + 1;
  while (too_many - fits > 1) {
    const int middle = fits + (too_many - fits) / 2;
    (tokens_of(middle) <= length ? fits : too_many) = middle;
  }
  if (fits == most) list_of(fits + 1);  // says that words are too few
  const WordList list = list_of(fits);
  RulerPrompt prompt = asked(tokenizer, question, list.common);
  const std::vector<Token> entries = encode(tokenizer, list.text);
  const int64_t left = length - fixed - static_cast<int64_t>(entries.size());
  prompt.document = texts.haystack->stretch(first, left + texts.haystack->special());
  append(prompt.document, head);
  append(prompt.document, entries);
  return prompt;
}

}  // namespace

TextTokens noise_text(const Tokenizer& tokenizer, int64_t tokens) {
  std::string text;
  const auto once = static_cast<int64_t>(encode(tokenizer, std::string(kNoise)).size());
  for (int64_t have = 0; have < tokens + once; have += once) text += kNoise;
  TextTokens noise{tokenizer, text, "noise"};
  // A tokenizer may merge what ends one copy with what begins the next.
  if (noise.size() < tokens) fail("noise: {} tokens of it became {}", tokens, noise.size());
  return noise;
}

RulerPrompt ruler_prompt(const Tokenizer& tokenizer, const RulerTexts& texts, int64_t first, RulerTask task,
                         const RulerSizes& sizes, uint64_t seed, int length, int prompt) {
  // Of what is drawn beside the case itself.
  const Splitmix random(~seed, {static_cast<int64_t>(task), length, prompt});
  if (task == RulerTask::CommonWords) {
    return common_words(tokenizer, texts, first, sizes.common, length, random);
  }
  return hidden_in_text(tokenizer, *texts.haystack, first, task, ruler_case(task, sizes, seed, length, prompt), length,
                        random);
}

}  // namespace tidal
