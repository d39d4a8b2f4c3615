#include "eval/text_places.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace tidal {

TextTokens::TextTokens(const Tokenizer& tokenizer, std::string_view text, std::string name) : name_(std::move(name)) {
  try {
    text_ = tokenizer.encode(text, false, false);
  } catch (const Error& error) {
    fail("{}: {}", name_, error.what());
  }
  if (text_.empty()) fail("{}: is empty, expected a text", name_);
  special_ = tokenizer.encode("", true, false);
}

uint64_t TextTokens::hash() const {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const Token token : text_) hash = (hash ^ static_cast<uint32_t>(token)) * 0x100000001b3ull;
  return hash;
}

std::vector<Token> TextTokens::stretch(int64_t first, int64_t count) const {
  std::vector<Token> tokens(special_.begin(), special_.begin() + std::min(count, special()));
  const auto begin = text_.begin() + first;
  tokens.insert(tokens.end(), begin, begin + std::max<int64_t>(count - special(), 0));
  return tokens;
}

std::vector<int64_t> TextTokens::places(int count, int64_t length) const {
  const int64_t own = std::max<int64_t>(length - special(), 0), part = size() / count;
  if (part < own) {
    const std::string what = count == 1 ? "" : fmt::format(" ({} places of {})", count, own);
    fail("{}: holds {} tokens, but {} are needed{}", name_, size(), count * own, what);
  }
  std::vector<int64_t> places;
  for (int64_t i = 0; i < count; ++i) places.push_back(i * size() / count + std::min(part / 2, part - own));
  return places;
}

}  // namespace tidal
