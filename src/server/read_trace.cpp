#include "server/read_trace.h"

#include <algorithm>

#include "core/utf8.h"

namespace tidal::server {

Reads ReadTrace::take(size_t end, bool last) {
  Reads reads{.prompt = static_cast<int>(prompt_), .first = static_cast<int>(given_), .texts = {}};
  std::vector<std::string> pieces;
  for (size_t i = given_; i < end; ++i) pieces.push_back(tokenizer_.piece(tokens_[i], true));
  reads.texts = whole_characters(pieces);
  // The last one may end inside a character, which the next token goes on with.
  if (!last && !reads.texts.empty() && find_invalid_utf8(reads.texts.back().text)) reads.texts.pop_back();
  for (const TextSpan& span : reads.texts) given_ += static_cast<size_t>(span.pieces);
  return reads;
}

Reads ReadTrace::texts_before(size_t end) {
  return take(std::clamp(end, given_, std::min(given_ + kMost, tokens_.size())), false);
}

Reads ReadTrace::rest() {
  const size_t end = std::min(given_ + kMost, tokens_.size());
  return take(end, end == tokens_.size());
}

}  // namespace tidal::server
