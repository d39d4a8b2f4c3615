// Comparing distributions of the next token: full attention's with that of sparse decoding.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/hyperparameters.h"

namespace tidal {

/// log(sum(exp(logits))), accumulated in double. As everything here, the same for any number of threads.
double log_sum_exp(std::span<const float> logits);
/// -log softmax(logits)[token], nats. Throws Error for a token outside the vocabulary.
double negative_log_likelihood(std::span<const float> logits, Token token);
/// The token with the highest logit, the lower one of equals; NaN never is it unless all are, then token 0. Throws
/// Error when there are none.
Token argmax(std::span<const float> logits);

/// The distribution that others are compared with, prepared once for all of them.
class NextToken {
 public:
  /// Takes over logits [vocab], of which at least one is above -infinity.
  void set(std::span<const float> logits);

  /// KL(this || softmax(logits)) in nats: 0 for the same logits, infinite where `logits` rules out (-infinity) what
  /// this one does not, NaN when NaN is among either. Throws Error for another number of logits.
  double kl_divergence(std::span<const float> logits) const;
  /// -log of the token's probability, nats. Throws Error for a token outside the vocabulary.
  double negative_log_likelihood(Token token) const;
  Token best() const { return best_; }

 private:
  std::vector<float> logits_;
  std::vector<double> probabilities_;
  double log_sum_ = 0;
  Token best_ = 0;
};

/// KL(softmax(full) || softmax(logits)), as NextToken has it.
double kl_divergence(std::span<const float> full, std::span<const float> logits);

/// Mean and standard error of values that come one by one (Welford's algorithm).
class MeanError {
 public:
  void add(double value);

  int64_t count() const { return count_; }
  /// 0 for none.
  double mean() const { return mean_; }
  /// Standard deviation of the sample over sqrt(count), of the mean of independent values; 0 for fewer than two.
  double error() const;

 private:
  int64_t count_ = 0;
  double mean_ = 0;
  double squares_ = 0;  // of the distances from the mean
};

/// Standard error of a share that was found in `count` independent draws: the binomial's, with one success and one
/// failure more (Agresti and Coull) so that 0 and 1 are not taken for certain. 0 for a count of 0.
double share_error(double share, int64_t count);

}  // namespace tidal
