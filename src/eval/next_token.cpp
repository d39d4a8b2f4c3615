#include "eval/next_token.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"

namespace tidal {
namespace {

void check_token(Token token, size_t vocab) {
  if (token < 0 || static_cast<size_t>(token) >= vocab) {
    fail("logits: token {} is outside the vocabulary of {}", token, vocab);
  }
}

constexpr int64_t kChunk = 4096;  // logits that one thread adds up

/// The sum of term(i) over [0, size), the sums of chunks added in order: the same for any number of threads.
template <typename Term>
double chunked_sum(size_t size, const Term& term) {
  const auto count = static_cast<int64_t>(size), chunks = (count + kChunk - 1) / kChunk;
  std::vector<double> sums(static_cast<size_t>(chunks));
#pragma omp parallel for schedule(static) if (chunks > 2)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    double sum = 0;
    const int64_t end = std::min(count, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; ++i) sum += term(static_cast<size_t>(i));
    sums[static_cast<size_t>(chunk)] = sum;
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

/// The highest logit, which keeps exp() in range. NaN is left to the sum.
double highest(std::span<const float> logits) {
  float top = -std::numeric_limits<float>::infinity();
  const auto count = static_cast<int64_t>(logits.size());
#pragma omp parallel for schedule(static) reduction(max : top) if (count > 2 * kChunk)
  for (int64_t i = 0; i < count; ++i) {
    const float logit = logits[static_cast<size_t>(i)];
    top = logit > top ? logit : top;
  }
  return top;
}

}  // namespace

double log_sum_exp(std::span<const float> logits) {
  const double top = highest(logits);
  if (std::isinf(top)) return top;
  return top + std::log(chunked_sum(logits.size(), [&](size_t i) { return std::exp(logits[i] - top); }));
}

double negative_log_likelihood(std::span<const float> logits, Token token) {
  check_token(token, logits.size());
  return log_sum_exp(logits) - logits[static_cast<size_t>(token)];
}

Token argmax(std::span<const float> logits) {
  if (logits.empty()) fail("logits: there are none, expected one for every token");
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best] || (std::isnan(logits[best]) && !std::isnan(logits[i]))) best = i;
  }
  return static_cast<Token>(best);
}

void NextToken::set(std::span<const float> logits) {
  best_ = argmax(logits);
  logits_.assign(logits.begin(), logits.end());
  log_sum_ = log_sum_exp(logits);
  probabilities_.resize(logits.size());
  const auto count = static_cast<int64_t>(logits.size());
#pragma omp parallel for schedule(static) if (count > 2 * kChunk)
  for (int64_t i = 0; i < count; ++i) {
    probabilities_[static_cast<size_t>(i)] = std::exp(logits[static_cast<size_t>(i)] - log_sum_);
  }
}

double NextToken::kl_divergence(std::span<const float> logits) const {
  if (logits.size() != logits_.size()) {
    fail("logits: {} of them cannot be compared with {}", logits.size(), logits_.size());
  }
  const double difference = chunked_sum(logits.size(), [&](size_t i) {
    // What has no probability adds nothing, even where both logits are -infinity.
    return probabilities_[i] != 0 ? probabilities_[i] * (static_cast<double>(logits_[i]) - logits[i]) : 0;
  });
  return difference + log_sum_exp(logits) - log_sum_;
}

double NextToken::negative_log_likelihood(Token token) const {
  check_token(token, logits_.size());
  return log_sum_ - logits_[static_cast<size_t>(token)];
}

double kl_divergence(std::span<const float> full, std::span<const float> logits) {
  NextToken reference;
  reference.set(full);
  return reference.kl_divergence(logits);
}

void MeanError::add(double value) {
  ++count_;
  const double before = value - mean_;
  mean_ += before / static_cast<double>(count_);
  squares_ += before * (value - mean_);
}

double MeanError::error() const {
  if (count_ < 2) return 0;
  const auto n = static_cast<double>(count_);
  return std::sqrt(squares_ / (n - 1) / n);
}

double share_error(double share, int64_t count) {
  if (count == 0) return 0;
  const double n = static_cast<double>(count) + 2;
  const double p = (share * static_cast<double>(count) + 1) / n;
  return std::sqrt(p * (1 - p) / n);
}

}  // namespace tidal
