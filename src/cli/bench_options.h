// The flags of `tidal bench` that are lists or words.
#pragma once

#include <ggml.h>

#include <string>
#include <vector>

namespace tidal {

/// Whole numbers from `least` on, separated by commas; ascending and each once in the result. Throws Error naming
/// `flag` and the part that is wrong.
std::vector<int> number_list(const std::string& flag, const std::string& text, int least);
/// Words separated by commas, in the order given and each once. Throws Error naming `flag` for one that is not among
/// `known`.
std::vector<std::string> word_list(const std::string& flag, const std::string& text,
                                   const std::vector<std::string>& known);
/// A type of weights by ggml's name (q4_0, q4_K, ..., case does not matter). Throws Error for any other.
ggml_type weight_type_from(const std::string& word);

}  // namespace tidal
