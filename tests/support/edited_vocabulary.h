// Vocabularies of real files with other flags.
#pragma once

#include <gguf.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

namespace tidal::test {

/// A copy of a GGUF file's metadata, without its tensors, that `change` has edited. Gone with the object.
class EditedVocabulary {
 public:
  EditedVocabulary(const std::string& from, const std::function<void(gguf_context*)>& change)
      : path_((std::filesystem::temp_directory_path() / ("tidal_vocabulary_" + std::to_string(::getpid()) + ".gguf"))
                  .string()) {
    using Context = std::unique_ptr<gguf_context, void (*)(gguf_context*)>;
    const Context source(gguf_init_from_file(from.c_str(), {true, nullptr}), gguf_free);
    const Context copy(gguf_init_empty(), gguf_free);
    if (!source || !copy) throw std::runtime_error(from + ": cannot be read");
    gguf_set_kv(copy.get(), source.get());
    change(copy.get());
    if (!gguf_write_to_file(copy.get(), path_.c_str(), true)) throw std::runtime_error(path_ + ": cannot be written");
  }
  ~EditedVocabulary() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  EditedVocabulary(const EditedVocabulary&) = delete;
  EditedVocabulary& operator=(const EditedVocabulary&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace tidal::test
