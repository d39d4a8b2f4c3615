// Text as Python's str sees it: the metrics of benchmarks are defined by what lower(), split() and \w do there.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tidal {

/// The characters of UTF-8 text; a byte that belongs to none becomes U+FFFD.
std::u32string decode_utf8(std::string_view text);
std::string encode_utf8(std::u32string_view text);

/// str.isspace() of one character.
bool is_space(char32_t c);
/// \d of a regular expression: a decimal digit of any script.
bool is_digit(char32_t c);
/// \w of a regular expression, as far as the C library knows letters: it takes the vowel signs of some scripts for
/// letters that Python does not.
bool is_word(char32_t c);

/// str.lower().
std::u32string lower(std::u32string_view text);
/// str.split(): the pieces between white space, without empty ones.
std::vector<std::u32string> split_words(std::u32string_view text);
/// re.findall(r"\d+").
std::vector<std::u32string> find_numbers(std::u32string_view text);

}  // namespace tidal
