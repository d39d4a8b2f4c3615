#include "cli/console/text_file.h"

#include <fmt/core.h>

#include "cli/console/output.h"
#include "core/utf8.h"
#include "model/mapped_file.h"

namespace tidal {

std::string read_text_file(const std::string& path) {
  const MappedFile file = map_file(path, "a text file");
  std::string text(reinterpret_cast<const char*>(file.data), file.size);
  check_text(text, path);
  return text;
}

Tokenizer open_tokenizer(const std::string& path) {
  Tokenizer tokenizer(path);
  for (const std::string& warning : tokenizer.warnings()) warn(fmt::format("{}: {}", path, warning));
  return tokenizer;
}

Tokenizer open_tokenizer(const std::string& path, const Hyperparameters& hp) {
  Tokenizer tokenizer = open_tokenizer(path);
  if (tokenizer.vocab_size() != hp.vocab) {
    fail("{}: its vocabulary has {} tokens, but its matrices {}", path, tokenizer.vocab_size(), hp.vocab);
  }
  return tokenizer;
}

}  // namespace tidal
