// The most likely tokens that every backend chooses: those of its own logits, token for token and bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "backend/likely_tokens.h"
#include "parity/setup.h"

namespace tidal::parity {
namespace {

using test::BackendTest;

constexpr int kWidth = 64;

/// [vocab, kWidth] in float32.
struct Output {
  explicit Output(int vocab) : values(static_cast<size_t>(vocab) * kWidth) {}
  void fill(int token, float value) {
    std::fill_n(values.begin() + static_cast<ptrdiff_t>(token) * kWidth, kWidth, value);
  }
  void copy(int from, int to) {
    std::copy_n(values.begin() + static_cast<ptrdiff_t>(from) * kWidth, kWidth,
                values.begin() + static_cast<ptrdiff_t>(to) * kWidth);
  }
  Weight view() const {
    return {GGML_TYPE_F32, static_cast<int64_t>(values.size() / kWidth), kWidth,
            reinterpret_cast<const std::byte*>(values.data())};
  }
  std::vector<float> values;
};

Output random_output(int vocab, Random& random) {
  Output output(vocab);
  for (float& value : output.values) value = random.uniform(1.0f);
  return output;
}

class LikelyParity : public BackendTest<std::string> {
 protected:
  /// Compares on rows that are positive in their first element, so that infinities keep their sign.
  void compare(const std::vector<ChunkShape>& chunks, const Output& output, const std::vector<int>& counts) {
    const size_t vocab = static_cast<size_t>(output.view().rows);
    Hyperparameters hp = attention_shape(1, 1, kWidth);
    hp.vocab = static_cast<int>(vocab);
    hp.logit_cap = cap_;
    const HostBatch batch(chunks, 90, random_);
    Device device(GetParam());
    std::vector<float> x = random_.uniform(static_cast<size_t>(batch->rows()) * kWidth, 1.0f);
    for (size_t i = 0; i < x.size(); i += kWidth) x[i] = std::abs(x[i]) + 0.1f;
    device.begin(hp, batch);
    const Rows rows = device.rows(x, kWidth);
    const HostWeight norm = random_vector(kWidth, 1.0f, 0.1f, random_);
    const Weight norm_weight = device.weight(norm), output_weight = device->upload(output.view());
    const size_t wanted = batch->logit_rows.size();
    std::vector<float> logits(wanted * vocab);
    device->logits(norm_weight, output_weight, *batch, rows, logits);
    for (const int count : counts) {
      const auto width = static_cast<size_t>(count);
      std::vector<LikelyToken> got(wanted * width + 1, {-7, 0}), expected(width);
      device->begin(hp, *batch);
      device->likely(norm_weight, output_weight, *batch, rows, count, std::span(got).first(wanted * width));
      EXPECT_EQ(got.back().token, -7) << "wrote beyond the end";
      for (size_t r = 0; r < wanted; ++r) {
        select_likely(std::span<const float>(logits).subspan(r * vocab, vocab), expected);
        for (size_t i = 0; i < width; ++i) {
          const LikelyToken& one = got[r * width + i];
          ASSERT_EQ(one.token, expected[i].token) << "row " << r << ", rank " << i << " of " << count;
          if (std::isnan(expected[i].logit)) {
            ASSERT_TRUE(std::isnan(one.logit));
          } else {
            ASSERT_EQ(one.logit, expected[i].logit);
          }
        }
      }
    }
  }

  Random random_{4242};
  float cap_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Backends, LikelyParity, testing::ValuesIn(kAllBackends),
                         [](const auto& info) { return info.param; });

TEST_P(LikelyParity, OfRandomLogits) {
  // Slices of a vocabulary that are full, nearly empty, and one alone.
  for (const int vocab : {1, 2, 97, 4096, 4097, 12289, 128256}) {
    if (vocab == 1 && GetParam() == "cuda") continue;  // one row of float32 is a vector there
    std::vector<int> counts;
    for (const int count : {1, 2, 40, 128, 129, 513, kMostLikely}) {
      if (count <= vocab) counts.push_back(count);
    }
    compare(decode_chunks({3, 70}), random_output(vocab, random_), counts);
  }
}

TEST_P(LikelyParity, OfManyRows) {
  // More than are made at once, some of a long chunk.
  compare({{0, 90}, {5, 1}, {64, 3}, {10, 20}}, random_output(5000, random_), {1, 40});
}

TEST_P(LikelyParity, OfCappedLogits) {
  cap_ = 4;  // of logits of about the size of 4
  compare({{0, 20}, {5, 1}, {64, 3}}, random_output(5000, random_), {1, 40, 200});
}

TEST_P(LikelyParity, TiesGoToTheLowerToken) {
  Output output = random_output(9000, random_);
  for (int token = 0; token < 9000; ++token) output.copy(token % 61, token);
  compare(decode_chunks({3, 70}), output, {1, 2, 40, 200, 1000});
  for (int token = 0; token < 9000; ++token) output.copy(0, token);
  compare(decode_chunks({3, 70}), output, {1, 1000});
}

TEST_P(LikelyParity, OfNoUsualNumbers) {
  const float infinity = std::numeric_limits<float>::infinity();
  Output output = random_output(9000, random_);
  const auto set_first = [&](int token, float value) { output.values[static_cast<size_t>(token) * kWidth] = value; };
  for (const int token : {8, 8999}) set_first(token, infinity);
  for (int token = 4000; token < 8990; ++token) set_first(token, -infinity);
  compare(decode_chunks({3}), output, {1, 2, 40, 1024});
  for (const int token : {6000, 77}) set_first(token, std::nanf(""));
  compare(decode_chunks({3}), output, {1, 2, 3, 40});
  for (int token = 0; token < 9000; ++token) set_first(token, -infinity);
  compare(decode_chunks({3}), output, {1, 40});
  for (int token = 0; token < 9000; ++token) output.fill(token, 0.0f);
  compare(decode_chunks({3}), output, {1, 40});
}

}  // namespace
}  // namespace tidal::parity
