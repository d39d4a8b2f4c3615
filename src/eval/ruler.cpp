#include "eval/ruler.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <set>

#include "core/error.h"

namespace tidal {
namespace {

struct TaskName {
  RulerTask task;
  const char* name;
};
constexpr std::array kRulerTasks = {
    TaskName{RulerTask::MultiKey, "niah_multikey"}, TaskName{RulerTask::MultiValue, "niah_multivalue"},
    TaskName{RulerTask::MultiQuery, "niah_multiquery"}, TaskName{RulerTask::VariableTracking, "vt"},
    TaskName{RulerTask::CommonWords, "cwe"}};

constexpr std::array kColours = {"amber", "azure", "bronze", "copper", "crimson", "golden", "ivory", "silver"};
constexpr std::array kThings = {"anchor", "basket", "candle", "harbour", "ladder", "lantern", "mirror", "pillow"};

void check(const char* what, int given, int most) {
  if (given < 1 || given > most) fail("ruler: {} {} in a prompt, expected 1 to {}", given, what, most);
}

/// Another one than all in `taken`.
template <typename Draw>
std::string another(std::set<std::string>& taken, const Draw& draw) {
  for (;;) {
    std::string drawn = draw();
    if (taken.insert(drawn).second) return drawn;
  }
}

std::string number(Splitmix& random) { return std::to_string(1000000 + random.below(9000000)); }

std::string key(Splitmix& random) {
  const std::string colour = kColours[random.below(kColours.size())];
  return colour + " " + kThings[random.below(kThings.size())];
}

/// "a, b and c".
std::string enumeration(std::span<const std::string> words) {
  std::string text = words[0];
  for (size_t i = 1; i < words.size(); ++i) text += (i + 1 < words.size() ? ", " : " and ") + words[i];
  return text;
}

RulerCase needles(RulerTask task, int count, Splitmix random) {
  check("needles", count, kRulerDepths);
  const auto keys = static_cast<size_t>(task == RulerTask::MultiValue ? 1 : count);
  std::set<std::string> taken;
  std::vector<std::string> names, numbers;
  for (size_t i = 0; i < keys; ++i) names.push_back("the " + another(taken, [&] { return key(random); }));
  for (int i = 0; i < count; ++i) numbers.push_back(another(taken, [&] { return number(random); }));
  RulerCase made;
  made.head = "Secret numbers are hidden in the following text. Remember them all.\n\n";
  for (size_t i = 0; i < numbers.size(); ++i) {
    made.hidden.push_back("\nA secret number of " + names[i % keys] + " is " + numbers[i] + ".\n");
  }
  random.shuffle(made.hidden);
  if (task == RulerTask::MultiKey) {
    made.wanted = {numbers[0]};
    made.question = "\n\nQuestion: What is the secret number of " + names[0] +
                    " in the text above?\nAnswer: The secret number of " + names[0] + " is";
    return made;
  }
  made.wanted = numbers;
  const std::string of = enumeration(names);
  made.question = "\n\nQuestion: What are all the secret numbers of " + of + " in the text above?\nAnswer: The " +
                  std::to_string(count) + " secret numbers of " + of + " are";
  return made;
}

std::string variable(Splitmix& random) {
  std::string name;
  for (int i = 0; i < 5; ++i) name += static_cast<char>('A' + random.below(26));
  return name;
}

RulerCase variables(int chains, int hops, Splitmix random) {
  check("chains", chains, kRulerDepths);
  check("hops", hops, kRulerDepths);
  check("assignments", chains * (hops + 1), kRulerDepths);
  RulerCase made;
  std::set<std::string> taken;
  std::string value;
  std::vector<int> turns;  // whose next assignment comes
  std::vector<std::vector<std::string>> assignments(static_cast<size_t>(chains));
  for (int chain = 0; chain < chains; ++chain) {
    std::string last = another(taken, [&] { return std::to_string(10000 + random.below(90000)); });
    if (chain == 0) value = last;
    for (int i = 0; i <= hops; ++i) {
      const std::string name = another(taken, [&] { return variable(random); });
      assignments[static_cast<size_t>(chain)].push_back(fmt::format("\nVAR {} = {}\n", name, last));
      if (chain == 0) made.wanted.push_back(name);
      last = "VAR " + name;
      turns.push_back(chain);
    }
  }
  random.shuffle(turns);
  std::vector<size_t> next(assignments.size(), 0);
  for (const int turn : turns) {
    const auto chain = static_cast<size_t>(turn);
    made.hidden.push_back(assignments[chain][next[chain]++]);
  }
  made.head = "Variables are given values in the following text. Remember all assignments.\n\n";
  made.question = "\n\nQuestion: Which variables have the value " + value +
                  " by the assignments in the text above?\nAnswer: The " + std::to_string(hops + 1) +
                  " variables that have the value " + value + " are: VAR";
  return made;
}

bool contains(std::string_view text, std::string_view part) {
  const auto same = [](unsigned char a, unsigned char b) { return std::tolower(a) == std::tolower(b); };
  return std::search(text.begin(), text.end(), part.begin(), part.end(), same) != text.end();
}

}  // namespace

const char* to_string(RulerTask task) {
  for (const TaskName& known : kRulerTasks) {
    if (known.task == task) return known.name;
  }
  return "";
}

std::vector<std::string> ruler_task_names() {
  std::vector<std::string> names;
  for (const TaskName& known : kRulerTasks) names.emplace_back(known.name);
  return names;
}

RulerTask ruler_task_from(const std::string& word) {
  for (const TaskName& known : kRulerTasks) {
    if (word == known.name) return known.task;
  }
  fail("--tasks: '{}' is not known, expected {}", word, enumeration(ruler_task_names()));
}

RulerCase ruler_case(RulerTask task, const RulerSizes& sizes, uint64_t seed, int length, int prompt) {
  const Splitmix random(seed, {static_cast<int64_t>(task), length, prompt});
  return task == RulerTask::VariableTracking ? variables(sizes.chains, sizes.hops, random)
                                             : needles(task, sizes.needles, random);
}

double ruler_score(std::span<const std::string> wanted, std::string_view said) {
  if (wanted.empty()) return 0;
  const auto found = std::count_if(wanted.begin(), wanted.end(), [&](const auto& one) { return contains(said, one); });
  return static_cast<double>(found) / static_cast<double>(wanted.size());
}

double ruler_error(std::span<const double> scores) {
  if (scores.empty()) return 0;
  const double n = static_cast<double>(scores.size()) + 2;
  double sum = 1, squares = 1;  // of the 0 and the 1 more
  for (const double score : scores) {
    sum += score;
    squares += score * score;
  }
  const double mean = sum / n;
  return std::sqrt(std::max(squares / n - mean * mean, 0.0) / n);
}

WordList numbered_words(std::span<const std::string> words, int common, int others, WordCounts counts,
                        Splitmix random) {
  const auto needed = static_cast<size_t>(common) + static_cast<size_t>(others);
  if (words.size() < needed) {
    fail("cwe: the text has {} words of one token, five letters or more, but {} are needed", words.size(), needed);
  }
  std::vector<std::string> drawn(words.begin(), words.end());
  random.shuffle(drawn);
  WordList list;
  list.common.assign(drawn.begin(), drawn.begin() + common);
  std::vector<std::string> entries;
  for (size_t i = 0; i < needed; ++i) {
    const int count = i < list.common.size() ? counts.common : counts.others;
    for (int k = 0; k < count; ++k) entries.push_back(drawn[i]);
  }
  random.shuffle(entries);
  for (size_t i = 0; i < entries.size(); ++i) {
    if (i > 0) list.text += ' ';
    list.text += std::to_string(i + 1);
    list.text += ". " + entries[i];
  }
  return list;
}

std::vector<std::string> single_token_words(const Tokenizer& tokenizer, std::string_view text) {
  constexpr size_t kLeast = 5;
  std::set<std::string> seen;
  std::vector<std::string> words;
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  for (size_t at = 0; at < text.size();) {
    const auto begin = std::find_if(text.begin() + static_cast<ptrdiff_t>(at), text.end(), letter);
    const auto end = std::find_if_not(begin, text.end(), letter);
    at = static_cast<size_t>(end - text.begin());
    const std::string word(begin, end);
    if (word.size() < kLeast || std::any_of(word.begin(), word.end(), [](char c) { return c < 'a'; })) continue;
    if (!seen.insert(word).second) continue;
    if (tokenizer.encode(" " + word, false, false).size() == 1) words.push_back(word);
  }
  std::string all;
  for (const std::string& word : words) all += word + " ";
  std::erase_if(words, [&](const std::string& word) { return all.find(word) != all.rfind(word); });
  return words;
}

}  // namespace tidal
