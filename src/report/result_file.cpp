#include "report/result_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "core/error.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

// Answers of a model may end inside a character.
std::string line_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

// As it will be read back: what JSON cannot hold is replaced already.
Json as_written(const Json& json) { return Json::parse(line_of(json)); }

// Without the order of fields, in which ordered_json would differ.
bool same(const Json& a, const Json& b) { return nlohmann::json(a) == nlohmann::json(b); }

std::string shown(const Json& object, const std::string& field) {
  constexpr size_t kMost = 80;
  if (!object.contains(field)) return "nothing";
  std::string text = object[field].dump();
  return text.size() > kMost ? text.substr(0, kMost) + "..." : text;
}

void check_header(const std::string& path, const Json& found, const Json& asked) {
  Json fields = asked;
  fields.update(found);
  for (const auto& [field, value] : fields.items()) {
    if (found.contains(field) && asked.contains(field) && same(found[field], asked[field])) continue;
    fail(
        "{}: holds the results of another run: '{}' is {} there and {} now; choose another --output or remove the file",
        path, field, shown(found, field), shown(asked, field));
  }
}

std::string read_all(const std::string& path, int file) {
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(file, buffer, sizeof buffer);
    if (n == 0) return text;
    if (n > 0) text.append(buffer, static_cast<size_t>(n));
    if (n < 0 && errno != EINTR) fail("{}: cannot be read: {}", path, std::strerror(errno));
  }
}

}  // namespace

ResultFile::ResultFile(std::string path, const Json& header) : path_(std::move(path)) {
  if (!header.is_object()) fail("{}: the header of a result file is {}, expected an object", path_, header.type_name());
  // Not blocking: a FIFO is refused, not waited for.
  file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
  if (file_ < 0) fail("{}: cannot be opened for writing: {}", path_, std::strerror(errno));
  try {
    struct stat status = {};
    if (::fstat(file_, &status) != 0 || !S_ISREG(status.st_mode)) {
      fail("{}: is not a regular file, to which a later run could return", path_);
    }
    if (::flock(file_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      fail("{}: another process is writing its results there", path_);
    }
    read(read_all(path_, file_), line_of(header));
  } catch (...) {
    ::close(file_);
    throw;
  }
}

ResultFile::~ResultFile() { ::close(file_); }

void ResultFile::read(const std::string& text, const std::string& header_line) {
  const Json header = Json::parse(header_line);
  // A run that was killed while it wrote the header, or has only opened the file; anything else that has no whole line
  // is a file of the user's that must not be touched.
  if (header_line.starts_with(text) && text.size() < header_line.size()) {
    if (::ftruncate(file_, 0) != 0) fail("{}: cannot be written: {}", path_, std::strerror(errno));
    append(header_line);
    return;
  }
  size_t begin = 0;
  for (size_t number = 1; begin < text.size(); ++number) {
    const size_t end = text.find('\n', begin);
    if (number > 1 && end == std::string::npos) break;
    const auto line = std::string_view(text).substr(begin, end == std::string::npos ? end : end - begin);
    Json json = Json::parse(line, nullptr, false);
    if (number == 1) {
      if (end == std::string::npos || !json.is_object()) {
        fail("{}: is not a result file: its first line is not a header; choose another --output", path_);
      }
      check_header(path_, json, header);
    } else {
      if (!json.is_object()) fail("{}: line {} is broken, expected a JSON object; remove it to go on", path_, number);
      rows_.push_back(std::move(json));
    }
    begin = end + 1;
  }
  size_ = static_cast<long long>(begin);
  if (begin < text.size() && ::ftruncate(file_, size_) != 0) {
    fail("{}: its last line is cut and cannot be removed: {}", path_, std::strerror(errno));
  }
}

const Json* ResultFile::find(const Json& key) const {
  const Json wanted = as_written(key);
  const auto matches = [&](const Json& row) {
    return std::all_of(wanted.items().begin(), wanted.items().end(), [&](const auto& field) {
      const auto found = row.find(field.key());
      return found != row.end() && same(*found, field.value());
    });
  };
  const auto row = std::find_if(rows_.begin(), rows_.end(), matches);
  return row == rows_.end() ? nullptr : &*row;
}

void ResultFile::add(const Json& row) {
  if (!row.is_object()) fail("{}: a row is {}, expected an object", path_, row.type_name());
  const std::string line = line_of(row);
  append(line);
  rows_.push_back(Json::parse(line));
}

void ResultFile::append(const std::string& line) {
  size_t written = 0;
  while (written < line.size()) {
    const ssize_t n = ::pwrite(file_, line.data() + written, line.size() - written,
                               static_cast<off_t>(size_ + static_cast<long long>(written)));
    if (n > 0) written += static_cast<size_t>(n);
    if (n > 0 || (n < 0 && errno == EINTR)) continue;
    const int reason = n < 0 ? errno : ENOSPC;
    // Should this fail as well, the next run takes the rest for a line cut by a kill.
    [[maybe_unused]] const int ignored = ::ftruncate(file_, static_cast<off_t>(size_));
    fail("{}: cannot write the results: {}", path_, std::strerror(reason));
  }
  size_ += static_cast<long long>(line.size());
}

}  // namespace tidal
