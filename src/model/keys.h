// The keys of one architecture in a file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "model/gguf.h"

namespace tidal {

/// Reads the keys `architecture.*` and remembers which were missing.
class Keys {
 public:
  Keys(const GgufFile& file, std::string architecture) : file_(file), prefix_(std::move(architecture) + ".") {}

  /// A required size; 0 when missing or, with an error, unless it is in [1, 2^24].
  int size(const std::string& key) {
    const auto value = file_.integer(prefix_ + key);
    if (!value) {
      missing_.push_back(prefix_ + key);
      return 0;
    }
    return checked(key, *value);
  }
  int size_or(const std::string& key, int otherwise) {
    const auto value = file_.integer(prefix_ + key);
    return value ? checked(key, *value) : otherwise;
  }
  double number_or(const std::string& key, double otherwise) {
    const double value = file_.number(prefix_ + key).value_or(otherwise);
    if (!std::isfinite(value)) fail("{}: key '{}{}' is not a finite number", file_.path(), prefix_, key);
    return value;
  }
  double number(const std::string& key) {
    if (!file_.number(prefix_ + key)) missing_.push_back(prefix_ + key);
    return number_or(key, 0);
  }
  /// A factor that divides or multiplies: above 0.
  double positive_or(const std::string& key, double otherwise) {
    const double value = number_or(key, otherwise);
    if (value <= 0) fail("{}: key '{}{}' is {}, expected a number above 0", file_.path(), prefix_, key, value);
    return value;
  }
  std::optional<std::string> text(const std::string& key) { return file_.text(prefix_ + key); }
  /// The same where 0, as for libllama, stands for a key that is absent.
  int nonzero_or(const std::string& key, int otherwise) { return integer_or(key, 0) == 0 ? otherwise : size(key); }
  /// What may be given per layer, or once for all.
  std::optional<std::vector<int64_t>> integers(const std::string& key, int layers) const {
    auto values = file_.integers(prefix_ + key);
    if (!values) return values;
    if (!file_.is_array(prefix_ + key)) {
      values->resize(static_cast<size_t>(std::max(layers, 1)), values->front());
    } else if (values->empty() || static_cast<int64_t>(values->size()) != layers) {
      fail("{}: key '{}{}' has {} values, expected one for each of {} layers", file_.path(), prefix_, key,
           values->size(), layers);
    }
    return values;
  }
  /// A size of that kind; all layers must agree.
  int uniform(const std::string& key, int otherwise, int layers) {
    const auto values = integers(key, layers);
    if (!values) return otherwise;
    for (const int64_t value : *values) {
      if (value != values->front()) {
        fail("{}: key '{}{}' differs between layers, which is not supported", file_.path(), prefix_, key);
      }
    }
    return checked(key, values->front());
  }

  int checked(const std::string& key, int64_t value) const {
    if (value < 1 || value > (1 << 24)) {
      fail("{}: key '{}{}' is {}, expected 1 to 2^24", file_.path(), prefix_, key, value);
    }
    return static_cast<int>(value);
  }

  int64_t integer_or(const std::string& key, int64_t otherwise) {
    return file_.integer(prefix_ + key).value_or(otherwise);
  }

  void require(const std::string& key) { missing_.push_back(prefix_ + key); }
  void require_whole(const std::string& key) { missing_.push_back(key); }
  void report_missing() const {
    if (missing_.empty()) return;
    std::string list;
    for (const std::string& key : missing_) list += (list.empty() ? "" : ", ") + key;
    fail("{}: these keys are missing: {}", file_.path(), list);
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
  std::vector<std::string> missing_;
};

}  // namespace tidal
