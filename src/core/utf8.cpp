#include "core/utf8.h"

#include <cstdint>
#include <filesystem>
#include <utility>

#include "core/error.h"

namespace tidal {
namespace {

enum class Start { Whole, Invalid, Incomplete };

struct Character {
  Start start;
  size_t bytes;  // of a whole character
};

/// What `text`, which must not be empty, begins with.
Character first_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Start::Whole, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Start::Invalid, 0};
  const size_t bytes = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and code points beyond U+10FFFF.
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < bytes; ++i) {
    if (i == text.size()) return {Start::Incomplete, 0};
    if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xBF)) return {Start::Invalid, 0};
  }
  return {Start::Whole, bytes};
}

}  // namespace

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Character character = first_character(text.substr(at));
    if (character.start != Start::Whole) return at;
    at += character.bytes;
  }
  return std::nullopt;
}

void check_text(std::string_view text, std::string_view name) {
  if (const auto at = find_invalid_utf8(text)) {
    fail("{}: byte {} (0x{:02x}) is not valid UTF-8", name, *at, static_cast<unsigned char>(text[*at]));
  }
  const size_t nul = text.find('\0');
  if (nul != std::string_view::npos) fail("{}: byte {} is NUL (0x00), expected text", name, nul);
}

std::string as_utf8(std::string_view bytes) {
  if (!find_invalid_utf8(bytes)) return std::string(bytes);
  std::string text;
  for (size_t at = 0; at < bytes.size();) {
    const Character character = first_character(bytes.substr(at));
    if (character.start != Start::Whole) {
      text += fmt::format("\\x{:02X}", static_cast<unsigned char>(bytes[at++]));
      continue;
    }
    if (bytes[at] == '\\') text += '\\';
    text += bytes.substr(at, character.bytes);
    at += character.bytes;
  }
  return text;
}

std::string file_name(const std::string& path) { return as_utf8(std::filesystem::path(path).filename().native()); }

std::string Utf8Stream::push(std::string_view bytes) {
  pending_ += bytes;
  size_t at = 0;
  while (at < pending_.size()) {
    const Character character = first_character(std::string_view(pending_).substr(at));
    if (character.start == Start::Incomplete) break;
    at += character.start == Start::Whole ? character.bytes : 1;
  }
  std::string whole = pending_.substr(0, at);
  pending_.erase(0, at);
  return whole;
}

std::string Utf8Stream::finish() { return std::exchange(pending_, {}); }

}  // namespace tidal
