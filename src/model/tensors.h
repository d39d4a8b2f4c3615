// The tensors of a file as a model asks for them: what is missing, wrong or never asked for is told in one message.
#pragma once

#include <deque>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "model/gguf.h"

namespace tidal {

class Tensors {
 public:
  explicit Tensors(const GgufFile& file) : file_(file) {}

  bool has(const std::string& name) const { return file_.tensors().contains(name); }
  /// Of the tensor of this whole name; 0 where there is none.
  int64_t rows(const std::string& name) const;
  /// True when any tensor's name begins with `prefix`; otherwise `prefix*` counts as missing, in one word.
  bool has_any(const std::string& prefix);

  /// The matrix NAME.weight [rows, cols], with NAME.scale as its scale where the file has that.
  Weight matrix(const std::string& name, int64_t rows, int64_t cols) { return scaled(name, rows, cols, true); }
  Weight optional_matrix(const std::string& name, int64_t rows, int64_t cols) {
    return scaled(name, rows, cols, false);
  }
  /// A matrix without a scale: rows of it are read, not multiplied.
  Weight table(const std::string& name, int64_t rows, int64_t cols);
  /// A vector of float32, by its whole name.
  Weight vector(const std::string& name, int64_t cols) { return find(name, 1, cols, true, true); }
  Weight optional_vector(const std::string& name, int64_t cols) { return find(name, 1, cols, false, true); }

  /// Vectors of float32, by their whole name: [count, cols].
  Weight vectors(const std::string& name, int64_t count, int64_t cols) { return find(name, count, cols, true, true); }
  /// A matrix of these rows, one stretch behind the other: a copy. Absent where `matrix` is, or is not [rows, *].
  struct Stretch {
    int64_t first, count;
  };
  Weight gather(const Weight& matrix, int64_t rows, const std::vector<Stretch>& stretches);
  /// The memory of all copies.
  std::shared_ptr<const void> copies() const { return copies_; }

  /// Known to be of no account for what is computed.
  void leave_out(const std::string& name) { used_.insert(name); }
  void leave_out_all(const std::string& prefix);
  /// Not supported after all.
  void refuse(const std::string& name) { used_.erase(name); }

  /// Throws Error `file: ...` that lists everything missing, everything wrong, and every tensor that was not asked for.
  void report() const;

 private:
  Weight scaled(const std::string& name, int64_t rows, int64_t cols, bool required);
  Weight find(const std::string& name, int64_t rows, int64_t cols, bool required, bool vector);

  const GgufFile& file_;
  std::set<std::string, std::less<>> used_;
  std::vector<std::string> missing_, wrong_;
  std::shared_ptr<std::deque<std::vector<std::byte>>> copies_ = std::make_shared<std::deque<std::vector<std::byte>>>();
};

/// Rows [first, first + count) of a matrix.
Weight rows_of(const Weight& matrix, int64_t first, int64_t count);
/// Elements [first, first + count) of a vector.
Weight elements_of(const Weight& vector, int64_t first, int64_t count);

}  // namespace tidal
