#include "eval/text_metrics.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <unordered_map>
#include <vector>

#include "core/error.h"
#include "eval/text_metrics_unicode.h"

namespace tidal {
namespace {

using Text = std::u32string;
using TextView = std::u32string_view;
using Words = std::vector<Text>;

// string.punctuation of Python.
bool is_punctuation(char32_t c) {
  return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) || (c >= 0x7B && c <= 0x7E);
}

// A run of word characters that is an article becomes a space: what \b(a|an|the)\b finds.
Text without_articles(TextView text) {
  Text out;
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    while (i < text.size() && is_word(text[i])) ++i;
    const TextView run = text.substr(begin, i - begin);
    if (run == U"a" || run == U"an" || run == U"the") {
      out += U' ';
    } else {
      out += run;
    }
    if (i < text.size()) out += text[i++];
  }
  return out;
}

Words normalised_words(std::string_view text) {
  Text lowered = lower(decode_utf8(text));
  std::erase_if(lowered, is_punctuation);
  return split_words(without_articles(lowered));
}

// The sentences of ROUGE: pieces between dots, split at white space. A piece of nothing but white space has one word,
// the empty one, as in the original.
std::vector<Words> sentences(std::string_view text) {
  const Text all = decode_utf8(text);
  std::vector<Words> result;
  for (size_t begin = 0; begin <= all.size();) {
    const size_t end = std::min(all.find(U'.', begin), all.size());
    if (end > begin) {
      Words words = split_words(TextView(all).substr(begin, end - begin));
      if (words.empty()) words.emplace_back();
      result.push_back(std::move(words));
    }
    begin = end + 1;
  }
  return result;
}

size_t different_words(const std::vector<Words>& sentences) {
  std::set<Text> words;
  for (const Words& sentence : sentences) words.insert(sentence.begin(), sentence.end());
  return words.size();
}

// Adds the words of one longest common subsequence. There may be several: on a tie the way back drops a word of the
// prediction, which decides what the union over the sentences has.
void add_common_subsequence(const Words& truth, const Words& prediction, std::set<Text>& common) {
  const size_t columns = prediction.size() + 1;
  std::vector<int> length((truth.size() + 1) * columns, 0);
  for (size_t i = 1; i <= truth.size(); ++i) {
    for (size_t j = 1; j < columns; ++j) {
      int& cell = length[i * columns + j];
      cell = truth[i - 1] == prediction[j - 1] ? length[(i - 1) * columns + j - 1] + 1
                                               : std::max(length[(i - 1) * columns + j], length[i * columns + j - 1]);
    }
  }
  for (size_t i = truth.size(), j = prediction.size(); i > 0 && j > 0;) {
    if (truth[i - 1] == prediction[j - 1]) {
      common.insert(truth[i - 1]);
      --i;
      --j;
    } else if (length[(i - 1) * columns + j] > length[i * columns + j - 1]) {
      --i;
    } else {
      --j;
    }
  }
}

double share_of(const std::vector<Text>& numbers, const Text& wanted) {
  if (numbers.empty()) return 0;
  return static_cast<double>(std::count(numbers.begin(), numbers.end(), wanted)) / static_cast<double>(numbers.size());
}

std::string_view first_code_line(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  while (true) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    if (line.find_first_of("`#") == std::string_view::npos && line.find("//") == std::string_view::npos) return line;
    if (end == std::string_view::npos) return "";
    text.remove_prefix(end + 1);
  }
}

// difflib.SequenceMatcher without a junk function.
class Matcher {
 public:
  Matcher(TextView a, TextView b) : a_(a), b_(b) {
    for (size_t j = 0; j < b.size(); ++j) places_[b[j]].push_back(j);
    if (b.size() < 200) return;
    std::erase_if(places_, [&](const auto& item) { return item.second.size() > b.size() / 100 + 1; });
  }

  size_t matches() const {
    size_t sum = 0;
    std::vector<Span> open = {{0, a_.size(), 0, b_.size()}};
    while (!open.empty()) {
      const Span span = open.back();
      open.pop_back();
      const Block block = longest(span);
      if (block.size == 0) continue;
      sum += block.size;
      open.push_back({span.a_begin, block.a, span.b_begin, block.b});
      open.push_back({block.a + block.size, span.a_end, block.b + block.size, span.b_end});
    }
    return sum;
  }

 private:
  struct Span {
    size_t a_begin, a_end, b_begin, b_end;
  };
  struct Block {
    size_t a, b, size;
  };

  // The longest match inside the spans, of several the first in a, of those the first in b.
  Block longest(const Span& span) const {
    Block best = {span.a_begin, span.b_begin, 0};
    std::unordered_map<size_t, size_t> lengths, next;  // by the place in b where a match ends
    for (size_t i = span.a_begin; i < span.a_end; ++i) {
      next.clear();
      if (const auto found = places_.find(a_[i]); found != places_.end()) {
        for (const size_t j : found->second) {
          if (j < span.b_begin) continue;
          if (j >= span.b_end) break;
          const auto before = j > 0 ? lengths.find(j - 1) : lengths.end();
          const size_t length = (before == lengths.end() ? 0 : before->second) + 1;
          next[j] = length;
          if (length > best.size) best = {i + 1 - length, j + 1 - length, length};
        }
      }
      std::swap(lengths, next);
    }
    // Over the characters that may not begin a match.
    while (best.a > span.a_begin && best.b > span.b_begin && a_[best.a - 1] == b_[best.b - 1]) {
      best = {best.a - 1, best.b - 1, best.size + 1};
    }
    while (best.a + best.size < span.a_end && best.b + best.size < span.b_end &&
           a_[best.a + best.size] == b_[best.b + best.size]) {
      ++best.size;
    }
    return best;
  }

  TextView a_, b_;
  std::unordered_map<char32_t, std::vector<size_t>> places_;  // of each character in b, rising
};

}  // namespace

std::string normalise_answer(std::string_view text) {
  std::string out;
  for (const Text& word : normalised_words(text)) out += fmt::format("{}{}", out.empty() ? "" : " ", encode_utf8(word));
  return out;
}

double qa_f1_score(std::string_view prediction, std::string_view truth) {
  const Words predicted = normalised_words(prediction), wanted = normalised_words(truth);
  std::map<Text, int> left;
  for (const Text& word : wanted) ++left[word];
  int same = 0;
  for (const Text& word : predicted) {
    const auto found = left.find(word);
    if (found != left.end() && found->second-- > 0) ++same;
  }
  if (same == 0) return 0;
  const double precision = static_cast<double>(same) / static_cast<double>(predicted.size());
  const double recall = static_cast<double>(same) / static_cast<double>(wanted.size());
  return 2 * precision * recall / (precision + recall);
}

double rouge_l_score(std::string_view prediction, std::string_view truth) {
  const std::vector<Words> predicted = sentences(prediction), wanted = sentences(truth);
  if (predicted.empty() || wanted.empty()) return 0;
  std::set<Text> common;
  for (const Words& truth_sentence : wanted) {
    for (const Words& sentence : predicted) add_common_subsequence(truth_sentence, sentence, common);
  }
  const double recall = static_cast<double>(common.size()) / static_cast<double>(different_words(wanted));
  const double precision = static_cast<double>(common.size()) / static_cast<double>(different_words(predicted));
  return 2.0 * (precision * recall / (precision + recall + 1e-8));
}

double classification_score(std::string_view prediction, std::string_view truth, std::span<const std::string> classes) {
  std::vector<std::string_view> named;
  for (const std::string& name : classes) {
    if (prediction.find(name) != std::string_view::npos) named.emplace_back(name);
  }
  // The original removes from the list over which it walks.
  for (size_t i = 0; i < named.size(); ++i) {
    const std::string_view name = named[i];
    if (truth.find(name) != std::string_view::npos && name != truth) {
      named.erase(std::find(named.begin(), named.end(), name));
    }
  }
  const bool right = std::find(named.begin(), named.end(), truth) != named.end();
  return right ? 1.0 / static_cast<double>(named.size()) : 0;
}

double retrieval_score(std::string_view prediction, std::string_view truth, std::string_view word) {
  const Text text = decode_utf8(truth), marker = decode_utf8(word);
  for (size_t at = text.find(marker); at != Text::npos; at = text.find(marker, at + 1)) {
    const size_t begin = at + marker.size();
    size_t end = begin;
    while (end < text.size() && is_digit(text[end])) ++end;
    if (end > begin) return share_of(find_numbers(decode_utf8(prediction)), text.substr(begin, end - begin));
  }
  fail("the reference answer '{}' names no paragraph, expected '{}' and a number", truth, word);
}

double count_score(std::string_view prediction, std::string_view truth) {
  return share_of(find_numbers(decode_utf8(prediction)), decode_utf8(truth));
}

double code_similarity_score(std::string_view prediction, std::string_view truth) {
  const Text line = decode_utf8(first_code_line(prediction)), wanted = decode_utf8(truth);
  if (line == wanted) return 1;
  if (line.empty() || wanted.empty()) return 0;
  // Rounded half to even, as Python's round() does.
  return std::nearbyint(100 * matching_ratio(line, wanted)) / 100;
}

double matching_ratio(std::u32string_view a, std::u32string_view b) {
  if (a.empty() && b.empty()) return 1;
  return 2.0 * static_cast<double>(Matcher(a, b).matches()) / static_cast<double>(a.size() + b.size());
}

}  // namespace tidal
