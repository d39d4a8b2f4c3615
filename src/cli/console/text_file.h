// What commands read: documents, and the vocabularies of models.
#pragma once

#include <string>

#include "text/tokenizer.h"

namespace tidal {

/// The whole of a regular file. Throws Error, naming the file, when it cannot be read, and the first byte of it that is
/// no text.
std::string read_text_file(const std::string& path);

/// The tokenizer of a model file; warns of what its vocabulary leaves to be guessed.
Tokenizer open_tokenizer(const std::string& path);
/// The same, for the model of that file. Throws Error unless the vocabulary is the matrices'.
Tokenizer open_tokenizer(const std::string& path, const Hyperparameters& hp);

}  // namespace tidal
