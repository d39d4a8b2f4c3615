#include "eval/needle.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

#include "core/error.h"

namespace tidal {
namespace {

constexpr std::array kCities = {"San Francisco", "Lisbon", "Kyoto",  "Vienna",   "Nairobi",    "Montreal",
                                "Marrakesh",     "Oslo",   "Havana", "Istanbul", "Copenhagen", "Buenos Aires"};
constexpr std::array kActivities = {
    "eat a sandwich in the old park",      "ride the yellow tram to the harbour", "drink green tea in a paper house",
    "listen to a violin under the bridge", "watch the elephants at the river",    "skate on the frozen canal",
    "buy a red carpet in the market",      "row a small boat to the island",      "dance in the street until morning",
    "climb the tower before breakfast",    "rent a bicycle and cross the lake",   "read the paper in a corner cafe"};

/// The next number of a splitmix64 generator (Steele, Lea and Flood 2014).
uint64_t next(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

uint64_t mixed(uint64_t seed, int length, double depth, int key) {
  uint64_t state = seed;
  for (const int64_t part : {int64_t{length}, static_cast<int64_t>(std::llround(depth * 1e6)), int64_t{key}}) {
    state = next(state) ^ static_cast<uint64_t>(part);
  }
  return state;
}

Needle pass_key(uint64_t state) {
  const std::string key = std::to_string(10000 + next(state) % 90000);
  // The wording of Mohtashami and Jaggi 2023 (arXiv 2305.16300), shortened.
  return {"\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n",
          "\nWhat is the pass key? The pass key is", key};
}

Needle sentence(uint64_t state) {
  const std::string city = kCities[next(state) % kCities.size()];
  const std::string activity = kActivities[next(state) % kActivities.size()];
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
  const uint64_t state = mixed(seed, length, depth, key);
  return kind == NeedleKind::PassKey ? pass_key(state) : sentence(state);
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
