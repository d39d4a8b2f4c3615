// A stack for libllama's pre-tokenizers, which take stack for every character of a word.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace tidal {

/// Stack, in bytes, that libllama may need for the tokens of `text` with a BPE pre-tokenizer that it runs through
/// std::regex. That of libstdc++ calls itself for every character of a match: 321 bytes of stack a character, measured
/// with all pre-tokenizers of llama-cpp-python 0.3.36 on runs of letters, Han characters, punctuation and white space.
/// Three times as much is allowed for. What a match can be long as is what bounds it: none of their patterns goes on
/// from white space to what is none, but for one character that leads.
size_t pretokenizer_stack(std::string_view text);

/// Whether libllama runs this `tokenizer.ggml.pre` through std::regex on more than a character at a time. Those that
/// are known not to are listed; false for these alone.
bool pretokenizer_recurses(const std::string& pre);

/// Most that run_on_stack() is asked for: about a million characters without white space.
constexpr size_t kMostStack = size_t{1} << 30;

/// Runs `work` on a thread with a stack of `bytes`, of which only what is used takes memory, and waits for it. Throws
/// what `work` throws, and Error when there is no room for the stack.
void run_on_stack(size_t bytes, const std::function<void()>& work);

}  // namespace tidal
