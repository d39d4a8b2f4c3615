// What clients are told when a request cannot be answered.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tidal::server {

/// An answer with a status of 4xx or 5xx, as OpenAI's API words it.
class ApiError : public std::runtime_error {
 public:
  using Numbers = std::vector<std::pair<std::string, int64_t>>;

  /// `type` such as invalid_request_error; `param`: the field that is wrong, "" for none; `numbers`: further fields.
  ApiError(int status, std::string type, const std::string& message, std::string param = "", Numbers numbers = {})
      : std::runtime_error(message),
        status_(status),
        type_(std::move(type)),
        param_(std::move(param)),
        numbers_(std::move(numbers)) {}

  int status() const { return status_; }
  const std::string& type() const { return type_; }
  const std::string& param() const { return param_; }
  const Numbers& numbers() const { return numbers_; }

 private:
  int status_;
  std::string type_, param_;
  Numbers numbers_;
};

/// 400: throws ApiError for the field `param` (or "") with a message formatted by {fmt}.
template <typename... Args>
[[noreturn]] void refuse(const std::string& param, fmt::format_string<Args...> format, Args&&... args) {
  throw ApiError(400, "invalid_request_error", fmt::format(format, std::forward<Args>(args)...), param);
}

/// 429: throws ApiError for more requests than may wait.
[[noreturn]] void refuse_for_now();

/// The body of an error: {"type": "error", "error": {"message", "type", "param", "code"}}, and its numbers.
std::string error_body(int status, const std::string& message, const std::string& type = "",
                       const std::string& param = "", const ApiError::Numbers& numbers = {});

}  // namespace tidal::server
