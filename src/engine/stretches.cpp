#include "engine/stretches.h"

#include <algorithm>

namespace tidal {

const Stretches::Stretch* Stretches::find(int position) const {
  const auto after = std::upper_bound(stretches_.begin(), stretches_.end(), position,
                                      [](int value, const Stretch& stretch) { return value < stretch.end; });
  return after == stretches_.end() || position < after->begin ? nullptr : &*after;
}

void Stretches::record(int position, std::span<const Token> tokens, int decode_rows) {
  const int end = position + static_cast<int>(tokens.size());
  if (!stretches_.empty() && end <= stretches_.back().end) return;  // again
  while (!stretches_.empty() && stretches_.back().end > position) {
    // Its first rows stay what they were, by the chunk that they were in.
    Stretch& last = stretches_.back();
    if (last.begin >= position) {
      stretches_.pop_back();
      continue;
    }
    if (!last.decoded) {
      const auto known = tokens.first(static_cast<size_t>(last.end - position));
      last.rest.insert(last.rest.begin(), known.begin(), known.end());
    }
    last.end = position;
  }
  const bool decoded = static_cast<int>(tokens.size()) <= decode_rows;
  if (decoded && !stretches_.empty() && stretches_.back().decoded && stretches_.back().end == position) {
    stretches_.back().end = end;
  } else {
    stretches_.push_back({position, end, decoded, {}});
  }
}

void Stretches::truncate(int length, std::span<const Token> tokens) {
  while (!stretches_.empty() && stretches_.back().begin >= length) stretches_.pop_back();
  if (stretches_.empty() || stretches_.back().end <= length) return;
  Stretch& last = stretches_.back();
  if (!last.decoded) {
    const auto known = tokens.subspan(static_cast<size_t>(length), static_cast<size_t>(last.end - length));
    last.rest.insert(last.rest.begin(), known.begin(), known.end());
  }
  last.end = length;
}

int Stretches::begin(int position) const {
  const Stretch* stretch = find(position);
  return stretch && !stretch->decoded ? stretch->begin : position;
}

int Stretches::end(int length) const {
  const bool last = !stretches_.empty() && stretches_.back().end == length;
  return length + (last ? static_cast<int>(stretches_.back().rest.size()) : 0);
}

Stretches::Again Stretches::again(int position, int most, int decode_rows) const {
  const Stretch* stretch = find(position);
  if (!stretch) {
    // Up to where something is known.
    const auto next = std::find_if(stretches_.begin(), stretches_.end(),
                                   [&](const Stretch& other) { return other.begin > position; });
    return {next == stretches_.end() ? most : std::min(most, next->begin - position), {}};
  }
  const int rows = std::min(most, stretch->end - position);
  if (stretch->decoded) return {std::min(rows, decode_rows), {}};
  const bool all = stretch->begin == position && stretch->end == position + rows;
  return {rows, all ? std::span<const Token>(stretch->rest) : std::span<const Token>()};
}

}  // namespace tidal
