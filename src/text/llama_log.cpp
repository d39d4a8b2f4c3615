#include "text/llama_log.h"

#include <fcntl.h>
#include <llama.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <sstream>

namespace tidal {
namespace {

std::mutex mutex;
std::string errors, warnings_text;

void collect(ggml_log_level level, const char* text, void*) {
  const std::lock_guard lock(mutex);
  if (level == GGML_LOG_LEVEL_ERROR) errors += text;
  if (level == GGML_LOG_LEVEL_WARN) warnings_text += text;
}

/// "llama_model_load: error loading model: ..." without the function, which says nothing to a user.
std::string without_function(std::string line) {
  const size_t colon = line.find(": ");
  if (colon != std::string::npos && line.find(' ') > colon) line.erase(0, colon + 2);
  return line;
}

}  // namespace

LlamaErrors::LlamaErrors() {
  {
    const std::lock_guard lock(mutex);
    errors.clear();
    warnings_text.clear();
  }
  llama_log_set(collect, nullptr);
}

std::string LlamaErrors::first() const {
  const std::lock_guard lock(mutex);
  return without_function(errors.substr(0, errors.find('\n')));
}

std::vector<std::string> LlamaErrors::warnings() const {
  std::istringstream text;
  {
    const std::lock_guard lock(mutex);
    text.str(warnings_text);
  }
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) {
    line = without_function(line);
    line.erase(line.find_last_not_of(' ') + 1);
    // Frames of stars and blank lines draw attention to others.
    const bool says = line.find_first_not_of("* ") != std::string::npos;
    if (says && std::find(lines.begin(), lines.end(), line) == lines.end()) lines.push_back(line);
  }
  return lines;
}

CapturedStderr::CapturedStderr() {
  std::fflush(stderr);
  file_ = memfd_create("stderr", MFD_CLOEXEC);
  original_ = file_ < 0 ? -1 : fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
  if (original_ >= 0) dup2(file_, STDERR_FILENO);
}

CapturedStderr::~CapturedStderr() {
  std::fflush(stderr);
  if (original_ >= 0) {
    dup2(original_, STDERR_FILENO);
    close(original_);
  }
  if (file_ >= 0) close(file_);
}

std::string CapturedStderr::text() const {
  std::fflush(stderr);
  std::string text(4096, '\0');
  const ssize_t count = file_ < 0 ? 0 : pread(file_, text.data(), text.size(), 0);
  text.resize(count > 0 ? static_cast<size_t>(count) : 0);
  // libllama quotes the grammar from the wrong place on: one line of it is enough.
  const size_t end = text.find('\n');
  return without_function(text.substr(0, end));
}

}  // namespace tidal
