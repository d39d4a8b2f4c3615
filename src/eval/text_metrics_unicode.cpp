#include "eval/text_metrics_unicode.h"

#include <clocale>
#include <cwctype>

#include <algorithm>
#include <iterator>

#include "core/error.h"
#include "core/utf8.h"

namespace tidal {
namespace {

// glibc's tables of Unicode, whatever language the user has set.
locale_t unicode() {
  static const locale_t locale = ::newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  if (locale == nullptr) fail("text metrics: the system has no locale C.UTF-8, which comes with glibc (libc-bin)");
  return locale;
}

bool is_letter(char32_t c) { return ::iswalpha_l(static_cast<wint_t>(c), unicode()) != 0; }

// The numbers that are no digits (superscripts, fractions), as far as they stand beside Latin letters: \w in Python,
// nothing in C.
bool is_other_number(char32_t c) {
  return c == 0xB2 || c == 0xB3 || c == 0xB9 || (c >= 0xBC && c <= 0xBE) || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) || (c >= 0x2150 && c <= 0x2189);
}

// A capital sigma that ends a word, the one letter whose lower case depends on its place.
bool ends_word(std::u32string_view text, size_t at) {
  return at > 0 && is_letter(text[at - 1]) && (at + 1 == text.size() || !is_letter(text[at + 1]));
}

}  // namespace

std::u32string decode_utf8(std::string_view text) {
  std::u32string out;
  while (!text.empty()) {
    // What is well-formed first, then one byte that is not.
    const size_t good = find_invalid_utf8(text).value_or(text.size());
    for (size_t i = 0; i < good;) {
      const auto byte = static_cast<unsigned char>(text[i]);
      const size_t bytes = byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
      char32_t c = bytes == 1 ? byte : byte & (0xFFu >> (bytes + 1));
      for (size_t j = 1; j < bytes; ++j) c = c << 6 | (static_cast<unsigned char>(text[i + j]) & 0x3Fu);
      out += c;
      i += bytes;
    }
    text.remove_prefix(good);
    if (text.empty()) break;
    out += U'\uFFFD';
    text.remove_prefix(1);
  }
  return out;
}

std::string encode_utf8(std::u32string_view text) {
  std::string out;
  for (const char32_t c : text) {
    const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (c >> shift & 0x3F)); };
    if (c < 0x80) {
      out += static_cast<char>(c);
    } else if (c < 0x800) {
      out += static_cast<char>(0xC0 | c >> 6);
      tail(0);
    } else if (c < 0x10000) {
      out += static_cast<char>(0xE0 | c >> 12);
      tail(6);
      tail(0);
    } else {
      out += static_cast<char>(0xF0 | c >> 18);
      tail(12);
      tail(6);
      tail(0);
    }
  }
  return out;
}

bool is_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_digit(char32_t c) {
  // The zeros of Unicode 14, category Nd; nine digits follow each.
  constexpr char32_t kZeros[] = {
      0x30,    0x660,   0x6F0,   0x7C0,   0x966,   0x9E6,   0xA66,   0xAE6,   0xB66,   0xBE6,   0xC66,
      0xCE6,   0xD66,   0xDE6,   0xE50,   0xED0,   0xF20,   0x1040,  0x1090,  0x17E0,  0x1810,  0x1946,
      0x19D0,  0x1A80,  0x1A90,  0x1B50,  0x1BB0,  0x1C40,  0x1C50,  0xA620,  0xA8D0,  0xA900,  0xA9D0,
      0xA9F0,  0xAA50,  0xABF0,  0xFF10,  0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0,
      0x11450, 0x114D0, 0x11650, 0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60,
      0x16AC0, 0x16B50, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0};
  const auto* const after = std::upper_bound(std::begin(kZeros), std::end(kZeros), c);
  return after != std::begin(kZeros) && c - *std::prev(after) < 10;
}

bool is_word(char32_t c) { return c == U'_' || is_letter(c) || is_digit(c) || is_other_number(c); }

std::u32string lower(std::u32string_view text) {
  std::u32string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == 0x130) {
      out += U"i\u0307";  // the dotted capital I, the one letter whose lower case is two characters
    } else if (text[i] == 0x3A3 && ends_word(text, i)) {
      out += U'\u03C2';
    } else {
      out += static_cast<char32_t>(::towlower_l(static_cast<wint_t>(text[i]), unicode()));
    }
  }
  return out;
}

std::vector<std::u32string> split_words(std::u32string_view text) {
  std::vector<std::u32string> words;
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    while (i < text.size() && !is_space(text[i])) ++i;
    if (i > begin) words.emplace_back(text.substr(begin, i - begin));
    ++i;
  }
  return words;
}

std::vector<std::u32string> find_numbers(std::u32string_view text) {
  std::vector<std::u32string> numbers;
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    while (i < text.size() && is_digit(text[i])) ++i;
    if (i > begin) numbers.emplace_back(text.substr(begin, i - begin));
    ++i;
  }
  return numbers;
}

}  // namespace tidal
