// Files that are mixtures of experts: what is read of them, and what is refused.
#include "support/loading.h"

namespace tidal::test {
namespace {

constexpr const char* kMixtures[] = {"qwen2moe", "qwen3moe", "olmoe"};

TEST(GgufExperts, AreReadFromEveryFamilyThatHasThem) {
  for (const std::string architecture : {"llama", "qwen2moe", "qwen3moe", "olmoe"}) {
    SCOPED_TRACE(architecture);
    const GgufWriter writer = small_model(architecture, {.experts = 6});
    const Bytes bytes = writer.bytes();
    const Model model = load_bytes(bytes, bytes.size());
    const Experts& experts = model.hp.experts;
    const bool own_length = architecture.starts_with("qwen"), shared = architecture == "qwen2moe";
    EXPECT_EQ(experts.count, 6);
    EXPECT_EQ(experts.used, 2);
    EXPECT_EQ(experts.ffn, own_length ? 32 : 96);
    EXPECT_EQ(experts.shared_ffn, shared ? 64 : 0);
    EXPECT_EQ(experts.weights_sum_to_one, architecture == "llama" || architecture == "qwen3moe");
    for (const Layer& layer : model.layers) {
      EXPECT_EQ(layer.router.rows, 6);
      EXPECT_EQ(layer.expert_gate.rows, 6 * experts.ffn);
      EXPECT_EQ(layer.expert_up.rows, 6 * experts.ffn);
      EXPECT_EQ(layer.expert_down.rows, 6 * 64);
      EXPECT_EQ(layer.expert_down.cols, experts.ffn);
      EXPECT_EQ(static_cast<bool>(layer.shared_switch), shared);
      EXPECT_EQ(static_cast<bool>(layer.shared_down), shared);
      EXPECT_FALSE(layer.gate || layer.up || layer.down);
    }
    // A token reads two of six experts.
    int64_t whole = 0, chosen = 0;
    for (const Layer& layer : model.layers) {
      for (const Weight* all : {&layer.expert_gate, &layer.expert_up, &layer.expert_down}) {
        whole += static_cast<int64_t>(all->bytes());
        chosen += static_cast<int64_t>(all->bytes()) / 6 * 2;
      }
    }
    Model dense = model;
    dense.hp.experts.used = 6;
    EXPECT_EQ(dense.decode_weight_bytes() - model.decode_weight_bytes(), whole - chosen);
  }
}

TEST(GgufExperts, QwenFilesWithoutALengthShareOutTheMlps) {
  GgufWriter writer = small_model("qwen3moe", {.ffn = 64});
  writer.erase("qwen3moe.expert_feed_forward_length");
  EXPECT_EQ(hyperparameters(writer).experts.ffn, 32);
  // With one, the MLP's need not be there.
  writer = small_model("qwen3moe");
  writer.erase("qwen3moe.feed_forward_length");
  EXPECT_EQ(refusal(writer), "");
  writer.erase("qwen3moe.expert_feed_forward_length");
  EXPECT_EQ(refusal(writer), "test.gguf: these keys are missing: qwen3moe.expert_feed_forward_length");
  writer = small_model("olmoe", {.kv_heads = 4});
  writer.erase("olmoe.feed_forward_length");
  EXPECT_EQ(refusal(writer), "test.gguf: these keys are missing: olmoe.feed_forward_length");
}

TEST(GgufExperts, CountsThatAreNone) {
  for (const std::string architecture : kMixtures) {
    SCOPED_TRACE(architecture);
    const auto with = [&](const char* key, uint32_t value) {
      GgufWriter writer = small_model(architecture, {.kv_heads = 4});
      writer.set(architecture + "." + key, value);
      return refusal(writer);
    };
    const auto text = [&](const std::string& what) { return fmt::format("test.gguf: key '{}.{}", architecture, what); };
    EXPECT_EQ(with("expert_count", 0), text("expert_count' is 0, expected 1 to 2^24"));
    EXPECT_EQ(with("expert_count", 1025), "test.gguf: 1025 experts, expected at most 1024");
    EXPECT_EQ(with("expert_used_count", 0), text("expert_used_count' is 0, expected 1 to 2^24"));
    EXPECT_EQ(with("expert_used_count", 6), "test.gguf: a token goes through 6 of 5 experts");
    EXPECT_EQ(with("expert_group_count", 2), "test.gguf: experts in 2 groups are not supported");
    GgufWriter writer = small_model(architecture, {.kv_heads = 4});
    writer.erase(architecture + ".expert_count").erase(architecture + ".expert_used_count");
    EXPECT_EQ(refusal(writer),
              fmt::format("test.gguf: these keys are missing: {0}.expert_count, {0}.expert_used_count", architecture));
  }
  GgufWriter dense = small_model("qwen3");
  dense.set("qwen3.expert_count", 8u);
  EXPECT_EQ(refusal(dense), "test.gguf: a mixture of experts of architecture 'qwen3' is not supported");
  dense.set("qwen3.expert_count", 0u);
  EXPECT_EQ(refusal(dense), "");
  dense = small_model("llama");
  dense.set("llama.expert_count", 0u);
  EXPECT_FALSE(hyperparameters(dense).experts);
}

TEST(GgufExperts, TensorsOfOtherSizesAndNames) {
  GgufWriter writer = small_model("qwen3moe");
  writer.add("blk.0.ffn_gate_inp.weight", GGML_TYPE_F32, {64, 4});
  writer.add("blk.0.ffn_up_exps.weight", GGML_TYPE_F32, {64, 32, 4});
  writer.erase_tensor("blk.1.ffn_down_exps.weight");
  writer.add("blk.1.ffn_gate_exps.scale", {1, 1, 1, 1}, {4});
  writer.add("blk.1.ffn_down.weight", GGML_TYPE_F32, {96, 64});
  EXPECT_EQ(refusal(writer),
            "test.gguf: these tensors are missing: blk.1.ffn_down_exps.weight; these tensors are wrong: "
            "blk.0.ffn_gate_inp.weight is [4, 64], expected [5, 64], blk.0.ffn_up_exps.weight is [128, 64], expected "
            "[160, 64], blk.1.ffn_gate_exps.scale is [1, 4], expected [1, 5]; these tensors are not supported: "
            "blk.1.ffn_down.weight");
  writer = small_model("olmoe", {.kv_heads = 4});
  writer.add("blk.1.ffn_gate_exps.scale", {1, 1, 1, 1, 1}, {5});
  EXPECT_EQ(refusal(writer), "test.gguf: these tensors are not supported: blk.1.ffn_gate_exps.scale");
}

}  // namespace
}  // namespace tidal::test
