// UTF-8: checking text that comes in, and holding back characters that are not whole yet on the way out.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace tidal {

/// Offset of the first byte that is not part of a well-formed character (Unicode 15, table 3-7); nullopt when all of
/// `text` is UTF-8.
std::optional<size_t> find_invalid_utf8(std::string_view text);

/// Streams the pieces of tokens, which may end inside a character.
class Utf8Stream {
 public:
  /// Adds bytes; returns all of them but those of a last character that more bytes may still complete. Bytes that no
  /// continuation can make a character pass as they are.
  std::string push(std::string_view bytes);
  /// What is left at the end, an incomplete character or nothing.
  std::string finish();

 private:
  std::string pending_;
};

}  // namespace tidal
