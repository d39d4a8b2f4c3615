// A layer's products on devices of 99 KiB of shared memory a block: the same bits as on others, which are held against
// the reference. Qkv, project, mlp, logits and experts, of every type that the device keeps and of bf16.
#include <gtest/gtest.h>

#include "model/rope.h"
#include "parity/setup.h"
#include "support/small_device.h"

namespace tidal::parity {
namespace {

/// Types that differ in what they become there: those kept, bf16, and one that becomes bf16.
std::vector<ggml_type> types() {
  std::vector<ggml_type> types = kKeptTypes;
  types.insert(types.end(), {GGML_TYPE_BF16, GGML_TYPE_Q3_K});
  return types;
}

class SmallDeviceLayer : public test::BackendTest<std::tuple<std::string, ggml_type>> {
 protected:
  ggml_type type() const { return std::get<1>(GetParam()); }

  static std::vector<ChunkShape> rows(int count) { return std::vector<ChunkShape>(count, ChunkShape{3, 1}); }
  std::vector<float> numbers(int count, int width) {
    std::vector<float> values(static_cast<size_t>(count) * width);
    for (float& value : values) value = random_.normal(1.0f);
    return values;
  }
  /// results() as the device is, and as a small one.
  template <typename Results>
  static void expect_the_same(const char* what, int rows, Results&& results) {
    const std::vector<float> large = results();
    const test::SmallDevice small;
    const std::vector<float> got = results();
    EXPECT_EQ(got, large) << what << " of " << rows << " rows";
  }

  void expect_experts(const Experts& experts, int width) {
    Hyperparameters hp = attention_shape(1, 1, 16);
    hp.width = width;
    hp.experts = experts;
    const HostWeight norm = random_vector(width, 1, 0.2f, random_);
    const HostWeight router = random_weight(GGML_TYPE_F32, experts.count, width, random_);
    const HostWeight gate = random_weight(type(), experts.count * experts.ffn, width, random_);
    const HostWeight up = random_weight(type(), experts.count * experts.ffn, width, random_);
    const HostWeight down = random_weight(type(), experts.count * width, experts.ffn, random_);
    // Decode rows, and a longer chunk of which experts have more than a small tile.
    for (const int count : {1, 3, 9, 150}) {
      const HostBatch batch(count < 150 ? rows(count) : std::vector<ChunkShape>{{300, count}}, hp.vocab, random_);
      const std::vector<float> x = numbers(count, width);
      expect_the_same("experts", count, [&] {
        Device device("cuda");
        device.begin(hp, batch);
        Layer layer;
        layer.ffn_norm = device.weight(norm);
        layer.router = device->upload_exact(router.view);
        layer.expert_gate = device.weight(gate);
        layer.expert_up = device.weight(up);
        layer.expert_down = device.weight(down);
        const Rows rows_of_x = device.rows(x, width);
        device->experts(layer, rows_of_x);
        return device.read(rows_of_x);
      });
    }
  }

  Random random_{static_cast<uint64_t>(type()) + 4000};
};

/// Rows of x of 4096 columns, of which few fit. k of another type has a launch of its own.
TEST_P(SmallDeviceLayer, Products) {
  Hyperparameters hp = attention_shape(2, 1, 128);
  hp.width = 4096;
  hp.ffn = 512;
  hp.vocab = 104;
  const auto matrix = [&](int rows, int cols) { return random_weight(type(), rows, cols, random_); };
  const HostWeight wq = matrix(hp.q_width(), hp.width), wv = matrix(hp.kv_width(), hp.width);
  const HostWeight wk = random_weight(GGML_TYPE_Q6_K, hp.kv_width(), hp.width, random_);
  const HostWeight wo = matrix(hp.width, hp.q_width()), output = matrix(hp.vocab, hp.width);
  const HostWeight gate = matrix(hp.ffn, hp.width), up = matrix(hp.ffn, hp.width), down = matrix(hp.width, hp.ffn);
  const HostWeight norm = random_vector(hp.width, 1, 0.2f, random_);
  const HostWeight bias = random_vector(hp.q_width(), 0, 0.5f, random_);
  for (const int count : {1, 2, 4, 5, 8, 9, 16, 17, 32}) {
    const HostBatch batch(rows(count), hp.vocab, random_);
    const HostCache cache = random_cache(hp, batch.blocks(), random_);
    const std::vector<float> x = numbers(count, hp.width), out = numbers(count, hp.q_width());
    expect_the_same("a layer", count, [&] {
      Device device("cuda");
      device.begin(hp, batch);
      Layer layer;
      layer.attn_norm = layer.ffn_norm = device.weight(norm);
      layer.wq = device.weight(wq);
      layer.wk = device.weight(wk);
      layer.wv = device.weight(wv);
      layer.bq = device.weight(bias);
      layer.wo = device.weight(wo);
      layer.gate = device.weight(gate);
      layer.up = device.weight(up);
      layer.down = device.weight(down);
      const Rows rows_of_x = device.rows(x, hp.width), q = device.rows(count, hp.q_width());
      const KvLayer kv = device.cache(cache);
      device->qkv(layer, *batch, rows_of_x, q, kv);
      device->project(layer, device.rows(out, hp.q_width()), rows_of_x);
      device->mlp(layer, rows_of_x);
      device->qkv(layer, *batch, rows_of_x, q, kv);
      std::vector<float> all(batch->logit_rows.size() * hp.vocab);
      device->logits(layer.attn_norm, device.weight(output), *batch, rows_of_x, all);
      for (const Rows& some : {q, rows_of_x}) {
        const std::vector<float> values = device.read(some);
        all.insert(all.end(), values.begin(), values.end());
      }
      for (const Bf16 value : device.read(kv, cache).values) all.push_back(to_float(value));
      return all;
    });
  }
}

TEST_P(SmallDeviceLayer, Experts) {
  const Experts narrow{.count = 5, .used = 3, .ffn = 1280, .weights_sum_to_one = true};
  // Together 28,672 hidden elements.
  const Experts wide{.count = 2, .used = 2, .ffn = 14336, .weights_sum_to_one = true};
  expect_experts(narrow, 512);
  if (type() == GGML_TYPE_Q8_0 || type() == GGML_TYPE_Q4_K || type() == GGML_TYPE_BF16) expect_experts(wide, 256);
}

INSTANTIATE_TEST_SUITE_P(Types, SmallDeviceLayer, testing::Combine(testing::Values("cuda"), testing::ValuesIn(types())),
                         [](const auto& info) { return std::string(ggml_type_name(std::get<1>(info.param))); });

}  // namespace
}  // namespace tidal::parity
