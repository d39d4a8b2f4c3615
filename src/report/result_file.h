// Result files: JSON Lines, a header and a row per result, written row by row so that a run which is killed can go on.
// JSON stands in the interface because rows have other fields in every command; for that reason the headers of report/
// are not installed, and users of the library need no JSON library.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tidal {

class ResultFile {
 public:
  using Json = nlohmann::ordered_json;

  /// Opens or creates `path` and takes over the rows that are in it. `header` says what was asked: the command, the
  /// model's fingerprint, the settings. A last line without its newline, cut by a kill, is removed from the file.
  /// Throws Error, leaving the file as it is, when it has another header (naming a field that differs), when another
  /// line is broken (naming it), when it is no result file, is in use by another process, or cannot be read or written.
  ResultFile(std::string path, const Json& header);
  ~ResultFile();
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;

  /// The finished rows in the file's order, those of this run behind those of earlier ones.
  const std::vector<Json>& rows() const { return rows_; }
  /// The first row that has all fields of `key` with the same values; nullptr when there is none. Valid until add().
  const Json* find(const Json& key) const;
  /// Appends an object; it is in the file when this returns. Numbers that are not finite become null, bytes that are
  /// not UTF-8 U+FFFD. Throws Error when the disk is full; what was written of the row is then taken back.
  void add(const Json& row);

 private:
  void read(const std::string& text, const std::string& header_line);
  void append(const std::string& line);

  std::string path_;
  int file_ = -1;
  long long size_ = 0;  // of whole lines, bytes
  std::vector<Json> rows_;
};

}  // namespace tidal
