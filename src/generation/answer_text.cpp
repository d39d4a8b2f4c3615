#include "generation/answer_text.h"

#include <algorithm>
#include <utility>

namespace tidal {

AnswerText::AnswerText(std::vector<std::string> stops) : stops_(std::move(stops)) { std::erase(stops_, ""); }

std::string AnswerText::push(std::string_view piece) {
  if (stopped()) return "";
  held_ += characters_.push(piece);
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at < first) {
      first = at;
      stop_ = stop;
    }
  }
  if (stopped()) return std::exchange(held_, "").substr(0, first);
  // The longest end of the text that a stop string begins with.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (held_.ends_with(std::string_view(stop).substr(0, length))) keep = length;
    }
  }
  const std::string rest = held_.substr(held_.size() - keep);
  held_.resize(held_.size() - keep);
  return std::exchange(held_, rest);
}

std::string AnswerText::finish() {
  if (stopped()) return "";
  return std::exchange(held_, "") + characters_.finish();
}

}  // namespace tidal
