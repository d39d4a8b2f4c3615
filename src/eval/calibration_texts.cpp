#include "eval/calibration_texts.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "core/error.h"

namespace tidal {
namespace {

constexpr int kDefaultPrefix = 4096;

void check(const CalibrationShape& shape, int budget) {
  if (shape.steps < 1) fail("calibrate: {} steps a place, at least 1 is needed", shape.steps);
  if (shape.places < 1) fail("calibrate: {} places, at least 1 is needed", shape.places);
  if (shape.prompts < 0 || shape.prompts > shape.places) {
    fail("calibrate: {} retrieval prompts, expected 0 to the number of places, {}", shape.prompts, shape.places);
  }
  if (shape.held_out < 0) fail("calibrate: {} places held out, expected 0 or more", shape.held_out);
  if (shape.stretches < 1) fail("calibrate: {} stretches a place, at least 1 is needed", shape.stretches);
  if (shape.prefix < 0) fail("calibrate: a prefix of {} tokens, expected more than the budget", shape.prefix);
  if (shape.prefix > 0 && shape.prefix <= budget) {
    fail("calibrate: behind a prefix of {} tokens a budget of {} leaves nothing out, expected a longer prefix",
         shape.prefix, budget);
  }
}

int64_t place_steps(const CalibrationShape& shape) { return int64_t{shape.steps} * shape.stretches; }

int64_t all_steps(const CalibrationShape& shape) { return place_steps(shape) * (shape.places + shape.held_out); }

/// Five digits, another for every number.
std::string pass_key(int number) { return std::to_string(10000 + (number * 73471 + 31415) % 90000); }

/// What the model wants before every text, BOS or nothing.
std::vector<Token> leading_tokens(const Tokenizer& tokenizer) {
  const std::vector<Token> with = tokenizer.encode("a", true, false), without = tokenizer.encode("a", false, false);
  const auto found = std::search(with.begin(), with.end(), without.begin(), without.end());
  return {with.begin(), found};
}

/// A place with a pass key at `depth` of its prefix, then the question and the answer.
CalibrationText retrieval_prompt(const Tokenizer& tokenizer, const CalibrationText& place, int parent, double depth,
                                 const std::string& key) {
  const auto encode = [&](const std::string& text) { return tokenizer.encode(text, false, false); };
  const std::vector<Token> sentence =
      encode("\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n");
  CalibrationText prompt;
  prompt.retrieval = true;
  prompt.parent = parent;
  const size_t length = place.prefix.size();
  if (sentence.size() >= length) {
    fail("calibrate: a prefix of {} tokens has no room for the {} of a pass key's sentence", length, sentence.size());
  }
  prompt.shared = static_cast<int>(depth * static_cast<double>(length - sentence.size()));
  prompt.prefix.assign(place.prefix.begin(), place.prefix.begin() + prompt.shared);
  prompt.prefix.insert(prompt.prefix.end(), sentence.begin(), sentence.end());
  prompt.prefix.insert(prompt.prefix.end(), place.prefix.begin() + prompt.shared,
                       place.prefix.end() - static_cast<ptrdiff_t>(sentence.size()));
  prompt.steps = encode("\nWhat is the pass key? The pass key is " + key);
  return prompt;
}

/// The n-th stretch of a place: what comes before it is prefix.
CalibrationText stretch(const CalibrationText& place, int n, int steps, int parent) {
  const auto begin = place.steps.begin() + static_cast<ptrdiff_t>(n) * steps;
  CalibrationText text;
  text.prefix = place.prefix;
  text.prefix.insert(text.prefix.end(), place.steps.begin(), begin);
  text.steps.assign(begin, begin + steps);
  text.parent = parent;
  text.shared = parent < 0 ? 0 : static_cast<int>(place.prefix.size());
  return text;
}

}  // namespace

int64_t calibration_tokens_needed(const CalibrationShape& shape, int budget) {
  return (shape.prefix > 0 ? shape.prefix : int64_t{2} * budget) + all_steps(shape);
}

std::vector<int64_t> spread_places(int count, int64_t size, int64_t length) {
  std::vector<int64_t> starts;
  for (int i = 0; i < count; ++i) starts.push_back(count > 1 ? i * (length - size) / (count - 1) : (length - size) / 2);
  return starts;
}

CalibrationTexts calibration_texts(const Tokenizer& tokenizer, std::string_view text, const std::string& name,
                                   const CalibrationShape& shape, int budget) {
  check(shape, budget);
  const std::vector<Token> leading = leading_tokens(tokenizer);
  const std::vector<Token> tokens = tokenizer.encode(text, false, false);
  const auto length = static_cast<int64_t>(tokens.size());
  const int64_t needed = calibration_tokens_needed(shape, budget);
  if (length < needed) {
    fail(
        "{}: {} tokens are too few to calibrate with, at least {} are needed: a prefix of {} and {} steps at each of "
        "{} "
        "places",
        name, length, needed, needed - all_steps(shape), place_steps(shape), shape.places + shape.held_out);
  }
  CalibrationTexts result;
  result.prefix = shape.prefix;
  if (result.prefix == 0) {
    result.prefix = static_cast<int>(
        std::max(std::min({int64_t{kDefaultPrefix}, length - all_steps(shape), length / 2}), int64_t{2} * budget));
  }

  // Places are apart by at least their steps: (length - prefix - steps) / (count - 1) >= steps of all stretches.
  const int count = shape.places + shape.held_out;
  const auto starts = spread_places(count, result.prefix + place_steps(shape), length);
  std::vector<CalibrationText> chosen, held_out;
  for (int i = 0; i < count; ++i) {
    const auto start = tokens.begin() + starts[static_cast<size_t>(i)];
    const auto room = static_cast<ptrdiff_t>(result.prefix);
    const auto lead = std::min(static_cast<ptrdiff_t>(leading.size()), room);
    CalibrationText place;
    place.prefix.assign(leading.begin(), leading.begin() + lead);
    place.prefix.insert(place.prefix.end(), start + lead, start + room);
    place.steps.assign(start + room, start + room + place_steps(shape));
    // The i-th is held out where the share held out up to it reaches another whole one.
    const bool out = (int64_t{i} + 1) * shape.held_out / count > int64_t{i} * shape.held_out / count;
    (out ? held_out : chosen).push_back(std::move(place));
  }

  // From the ends and the middle of the text in turn rather than from its start to its end, so that the first few
  // texts already come from all over it: places in the order of a step that is prime to their number.
  int step = std::max(1, shape.places * 5 / 8);
  while (std::gcd(step, shape.places) != 1) ++step;
  std::vector<std::pair<size_t, int>> stretched;  // chosen places, and their texts
  for (int i = 0; i < shape.places; ++i) {
    const auto from = static_cast<size_t>(int64_t{i} * step % shape.places);
    const int parent = static_cast<int>(result.texts.size());
    result.texts.push_back(stretch(chosen[from], 0, shape.steps, -1));
    stretched.emplace_back(from, parent);
    // Prompts as evenly among the places as they go, the first one behind the first place.
    const int before = (i * shape.prompts + shape.places - 1) / shape.places;
    const int after = ((i + 1) * shape.prompts + shape.places - 1) / shape.places;
    if (after > before) {
      const double depth = (before + 0.5) / shape.prompts;
      result.texts.push_back(
          retrieval_prompt(tokenizer, result.texts[static_cast<size_t>(parent)], parent, depth, pass_key(before)));
    }
  }
  result.first = static_cast<int>(result.texts.size());
  for (int n = 1; n < shape.stretches; ++n) {
    for (const auto& [from, parent] : stretched) {
      result.texts.push_back(stretch(chosen[from], n, shape.steps, parent));
    }
  }
  result.choice = static_cast<int>(result.texts.size());
  for (const CalibrationText& place : held_out) {
    const int parent = static_cast<int>(result.texts.size());
    for (int n = 0; n < shape.stretches; ++n) {
      result.texts.push_back(stretch(place, n, shape.steps, n > 0 ? parent : -1));
    }
  }
  return result;
}

}  // namespace tidal
