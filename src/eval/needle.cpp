#include "eval/needle.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

#include "core/error.h"
#include "eval/splitmix.h"

namespace tidal {
namespace {

constexpr std::array kCities = {"San Francisco", "Lisbon", "Kyoto",  "Vienna",   "Nairobi",    "Montreal",
                                "Marrakesh",     "Oslo",   "Havana", "Istanbul", "Copenhagen", "Buenos Aires"};
constexpr std::array kActivities = {
    "eat a sandwich in the old park",      "ride the yellow tram to the harbour", "drink green tea in a paper house",
    "listen to a violin under the bridge", "watch the elephants at the river",    "skate on the frozen canal",
    "buy a red carpet in the market",      "row a small boat to the island",      "dance in the street until morning",
    "climb the tower before breakfast",    "rent a bicycle and cross the lake",   "read the paper in a corner cafe"};

Needle pass_key(Splitmix random) {
  const std::string key = std::to_string(10000 + random.next() % 90000);
  // The wording of Mohtashami and Jaggi 2023 (arXiv 2305.16300), shortened.
  return {"\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n",
          "\nWhat is the pass key? The pass key is", key};
}

Needle sentence(Splitmix random) {
  const std::string city = kCities[random.next() % kCities.size()];
  const std::string activity = kActivities[random.next() % kActivities.size()];
  return {"\nThe best thing to do in " + city + " is to " + activity + ".\n",
          "\nWhat is the best thing to do in " + city + "? The best thing to do in " + city + " is to", activity};
}

}  // namespace

const char* to_string(NeedleKind kind) { return kind == NeedleKind::PassKey ? "passkey" : "sentence"; }

NeedleKind needle_kind_from(const std::string& word) {
  if (word == "passkey") return NeedleKind::PassKey;
  if (word == "sentence") return NeedleKind::Sentence;
  fail("--needle: '{}' is not known, expected passkey or sentence", word);
}

Needle make_needle(NeedleKind kind, uint64_t seed, int length, double depth, int key) {
  const Splitmix random(seed, {length, std::llround(depth * 1e6), key});
  return kind == NeedleKind::PassKey ? pass_key(random) : sentence(random);
}

bool finds_needle(const Needle& needle, const std::string& said) {
  const size_t start = said.find_first_not_of(' ');
  if (start == std::string::npos || said.size() - start < needle.answer.size()) return false;
  return std::equal(needle.answer.begin(), needle.answer.end(), said.begin() + static_cast<ptrdiff_t>(start),
                    [](unsigned char a, unsigned char b) { return std::tolower(a) == std::tolower(b); });
}

NeedlePrompt needle_prompt(const Tokenizer& tokenizer, const TextTokens& text, int64_t first, const Needle& needle,
                           int length, double depth) {
  NeedlePrompt prompt;
  prompt.needle = needle;
  prompt.question = tokenizer.encode(needle.question, false, false);
  const std::vector<Token> sentence = tokenizer.encode(needle.sentence, false, false);
  const int64_t own = static_cast<int64_t>(sentence.size() + prompt.question.size()) + text.special();
  if (own > length) {
    fail("needle: with its question it has {} tokens, which do not fit in a prompt of {}", own, length);
  }
  const int64_t around = length - own;
  const auto at = static_cast<int64_t>(depth * static_cast<double>(around)) + text.special();
  prompt.document = text.stretch(first, around + text.special());
  prompt.document.insert(prompt.document.begin() + at, sentence.begin(), sentence.end());
  prompt.answer_tokens = static_cast<int>(tokenizer.encode(" " + needle.answer, false, false).size()) + 2;
  return prompt;
}

}  // namespace tidal
