#include "cli/bench/options.h"

#include <strings.h>

#include <algorithm>
#include <charconv>

#include "core/error.h"

namespace tidal {
namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    parts.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return parts;
}

}  // namespace

std::vector<int> number_list(const std::string& flag, const std::string& text, int least) {
  std::vector<int> numbers;
  for (const std::string& part : split(text)) {
    int number = 0;
    const char* end = part.data() + part.size();
    const auto [stop, error] = std::from_chars(part.data(), end, number);
    if (error == std::errc::result_out_of_range && stop == end) fail("{}: {} is too large", flag, part);
    if (error != std::errc() || stop != end) {
      fail("{}: '{}' is not a whole number, expected one or several with commas between", flag, part);
    }
    if (number < least) fail("{}: {} given, at least {} is needed", flag, number, least);
    numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end());
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  return numbers;
}

std::vector<std::string> word_list(const std::string& flag, const std::string& text,
                                   const std::vector<std::string>& known) {
  std::vector<std::string> words;
  for (const std::string& part : split(text)) {
    if (std::find(known.begin(), known.end(), part) == known.end()) {
      std::string names;
      for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
      fail("{}: '{}' is not known, expected {}", flag, part, names);
    }
    if (std::find(words.begin(), words.end(), part) == words.end()) words.push_back(part);
  }
  return words;
}

const char* const kBenchAttentionHelp =
    "Kinds of attention, a list: full, tidal, sketch; default: what tidal run takes; exact: full attention's own text, "
    "drafted by that; exact-tidal and exact-sketch: drafted by that kind (default: full, the kind that tidal run "
    "takes, "
    "and default where that goes over from the one to the other)";

std::vector<BenchPlan> bench_plans(const std::optional<std::string>& words, const PlanOptions& options,
                                   const Hyperparameters& hp, const FullBelow& full_below) {
  std::string usual;
  if (!words) {
    const Plan plan = choose_plan(options, hp, full_below).plan;
    usual = "full," + kind_of(plan) + (plan == make_plan(options, hp) ? "" : ",default");
  }
  const std::string prefix = "exact";
  std::vector<BenchPlan> plans;
  std::vector<std::string> kinds;
  for (const std::string& word :
       word_list("--attention", words.value_or(usual),
                 {"full", "tidal", "sketch", "default", "exact", "exact-tidal", "exact-sketch"})) {
    const bool exact = word.starts_with(prefix);
    plans.push_back({.attention = word, .exact = exact, .plan = {}, .source = {}});
    kinds.push_back(word == "default" ? "" : !exact ? word : word == prefix ? "" : word.substr(prefix.size() + 1));
  }
  const std::vector<ChosenPlan> chosen = choose_plans(options, kinds, hp, full_below);
  for (size_t i = 0; i < plans.size(); ++i) {
    plans[i].plan = chosen[i].plan;
    plans[i].source = chosen[i].source;
  }
  return plans;
}

void check_baseline(const std::string& word) {
  if (!word.empty() && word != "llama.cpp") fail("--baseline: '{}' is not known, expected llama.cpp", word);
}

ggml_type weight_type_from(const std::string& word) {
  for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
    const auto type = static_cast<ggml_type>(i);
    const char* name = ggml_type_name(type);
    if (name && strcasecmp(name, word.c_str()) == 0) return type;
  }
  fail("--type: '{}' is not known, expected a type of ggml like q4_0, q8_0, q4_K or f16", word);
}

}  // namespace tidal
