// UTF-8: checking text that comes in, names of files that need not be text, and holding back characters that are not
// whole yet on the way out.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace tidal {

/// Offset of the first byte that is not part of a well-formed character (Unicode 15, table 3-7); nullopt when all of
/// `text` is UTF-8.
std::optional<size_t> find_invalid_utf8(std::string_view text);

/// Throws Error `name: byte 7 ...` when `text` is not UTF-8 or holds a NUL, at which libraries in C would end it.
void check_text(std::string_view text, std::string_view name);

/// `bytes` as they are when they are UTF-8. Otherwise a name of a file, say, as text from which it can be had back:
/// every byte that is not part of a character as \xE9, every backslash doubled.
std::string as_utf8(std::string_view bytes);

/// The last part of a path, as UTF-8: for what people and JSON readers are told, not for opening the file.
std::string file_name(const std::string& path);

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
