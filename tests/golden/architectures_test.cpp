// Small random models of every architecture and RoPE scaling: our logits are llama.cpp's, so every key and tensor of
// the file is read as llama.cpp reads it.
#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/engine.h"
#include "golden/engine_logits.h"
#include "golden/llama_reference.h"
#include "model/family.h"
#include "support/gguf_writer.h"
#include "support/loading.h"

namespace tidal::golden {
namespace {

using test::GgufWriter;

struct Change {
  const char* name;
  std::function<void(GgufWriter&, const std::string& prefix)> apply;
  std::function<bool(const Family&)> needs = nullptr;  ///< what a family must have for it
};

bool has_windows(const Family& family) { return family.window_pattern > 0; }
bool has_own_base(const Family& family) {
  return has_windows(family) && family.window_rope != Family::WindowRope::Unscaled;
}
bool needs_no_window(const Family& family) { return has_windows(family) && family.architecture != "gpt-oss"; }

/// The value of a key that is a list of booleans.
test::Bytes list_of(const std::vector<bool>& values) {
  test::Bytes bytes;
  test::append(bytes, static_cast<uint32_t>(GGUF_TYPE_BOOL));
  test::append(bytes, static_cast<uint64_t>(values.size()));
  for (const bool value : values) test::append(bytes, static_cast<uint8_t>(value));
  return bytes;
}

/// LongRoPE's two sets of factors, of which the context, 128 and 256 in libllama, and the original one choose.
void add_long_rope(GgufWriter& file, const std::string& prefix, uint32_t original_context) {
  file.set(prefix + "rope.scaling.original_context_length", original_context);
  file.set(prefix + "rope.scaling.attn_factor", 1.2f);
  file.add("rope_factors_long.weight", {1, 1, 1.5f, 2, 3, 4, 8, 8}, {8});
  file.add("rope_factors_short.weight", {1, 1.1f, 1.2f, 1.3f, 1.4f, 1.5f, 2, 4}, {8});
}

const Change kChanges[] = {
    {"base", [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "rope.freq_base", 500.0f); }},
    {"linear",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "rope.scaling.type", "linear").set(prefix + "rope.scaling.factor", 4.0f);
     }},
    {"factor without a type",
     [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "rope.scaling.factor", 4.0f); }},
    {"old factor", [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "rope.scale_linear", 4.0f); }},
    {"llama3 factors",
     [](GgufWriter& file, const std::string&) {
       file.add("rope_freqs.weight", {1, 1, 1.5f, 2, 3, 4, 8, 8}, {8});
     },
     &Family::rope_factors},
    {"long factors", [](GgufWriter& file, const std::string& prefix) { add_long_rope(file, prefix, 64); },
     &Family::long_rope},
    {"short factors", [](GgufWriter& file, const std::string& prefix) { add_long_rope(file, prefix, 256); },
     &Family::long_rope},
    {"other scales",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "embedding_scale", 10.0f).set(prefix + "residual_scale", 0.4f);
       file.erase(prefix + "attention.scale").set(prefix + "logit_scale", 3.5f);
     },
     &Family::scales},
    {"other temperature",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "attention.temperature_scale", 1.5f);
       file.set(prefix + "rope.scaling.original_context_length", 50u);
     },
     &Family::temperature},
    {"no temperature",
     [](GgufWriter& file, const std::string& prefix) { file.erase(prefix + "attention.temperature_scale"); },
     &Family::temperature},
    {"other window",
     [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "attention.sliding_window", 20u); },
     has_windows},
    {"no window",
     [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "attention.sliding_window", 0u); },
     needs_no_window},
    {"window everywhere",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "attention.sliding_window", 32u).set(prefix + "attention.sliding_window_pattern", 0u);
     },
     has_windows},
    {"window in the last layer",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "attention.sliding_window", 32u);
       file.set_raw(prefix + "attention.sliding_window_pattern", GGUF_TYPE_ARRAY, list_of({false, true}));
     },
     has_windows},
    {"other base of windows",
     [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "rope.freq_base_swa", 2500.0f); },
     has_own_base},
    {"usual base of windows",
     [](GgufWriter& file, const std::string& prefix) { file.erase(prefix + "rope.freq_base_swa"); }, has_own_base},
    {"window and yarn",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "attention.sliding_window", 32u).set(prefix + "attention.sliding_window_pattern", 2u);
       file.set(prefix + "rope.scaling.type", "yarn").set(prefix + "rope.scaling.factor", 4.0f);
       file.set(prefix + "rope.scaling.original_context_length", 32u).set(prefix + "rope.scaling.attn_factor", 0.8f);
     },
     has_windows},
    {"axes of pictures",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "rope.dimension_sections", std::vector<uint32_t>{3, 3, 2, 0});
     },
     &Family::rope_sections},
    {"no rotation",
     [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "rope.scaling.finetuned", false); },
     &Family::rotation_key},
    {"yarn",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "rope.scaling.type", "yarn").set(prefix + "rope.scaling.factor", 4.0f);
       file.set(prefix + "rope.scaling.original_context_length", 32u);
     }},
    {"yarn with all its keys",
     [](GgufWriter& file, const std::string& prefix) {
       file.set(prefix + "rope.scaling.type", "yarn").set(prefix + "rope.scaling.factor", 8.0f);
       file.set(prefix + "rope.scaling.original_context_length", 64u).set(prefix + "rope.scaling.attn_factor", 0.8f);
       file.set(prefix + "rope.scaling.yarn_beta_fast", 2.0f).set(prefix + "rope.scaling.yarn_beta_slow", 0.1f);
       file.set(prefix + "rope.scaling.yarn_ext_factor", 0.5f).set(prefix + "rope.scaling.yarn_attn_factor", 0.5f);
       file.set(prefix + "rope.scaling.yarn_log_multiplier", 0.5f);
     }},
};

/// An architecture, and how many experts its layers have. Of SmolLM3 the fourth layer is the first not to rotate.
struct Kind {
  const char* architecture;
  uint64_t experts = 0;
  uint64_t layers = 2;

  bool is_mixture() const { return experts > 0; }
  GgufWriter model() const {
    test::SmallShape shape{.layers = layers, .experts = experts};
    if (std::string(architecture) == "olmoe") shape.kv_heads = shape.heads;  // as libllama expects
    return test::small_model(architecture, shape);
  }
  std::string name() const {
    std::string name = architecture + std::string(experts > 0 ? "_experts" : "");
    std::replace(name.begin(), name.end(), '-', '_');  // as googletest asks
    return name;
  }
};

class Architectures : public testing::TestWithParam<Kind> {
 protected:
  /// Of logits of this size: a few times bf16's half unit, 2^-9, for two layers, whose roundings are independent.
  static double most_rounding(double size) {
    return size / 128 * std::sqrt(static_cast<double>(GetParam().layers) / 2);
  }
  /// How far two runs' logits are apart, over all tokens. Of mixtures of experts what three quarters of the tokens are
  /// at least: one that its router finds two experts about as good for goes through the other when K and V are rounded,
  /// which moves its logits by a whole expert, and a little those of all tokens behind it.
  static double apart(std::span<const float> a, std::span<const float> b) {
    if (!GetParam().is_mixture()) return deviation(a, b);
    std::vector<double> tokens;
    const size_t vocab = a.size() / kTokens;
    for (size_t i = 0; i < a.size(); i += vocab) tokens.push_back(deviation(a.subspan(i, vocab), b.subspan(i, vocab)));
    std::nth_element(tokens.begin(), tokens.begin() + kTokens / 4, tokens.end());
    return tokens[kTokens / 4];
  }
};

// What remains between the engines is the rounding of our cache to bf16, which no scaling of positions makes larger.
// The plain model shows how large that is; a key read otherwise would move the logits as far as the key itself does.
TEST_P(Architectures, LogitsAreLlamas) {
  const test::TemporaryFolder folder;
  const std::vector<Token> tokens = some_tokens();
  const std::string prefix = std::string(GetParam().architecture) + ".";
  const auto save = [&](const GgufWriter& file, const char* name) {
    const std::string path = folder.file(std::string(name) + ".gguf");
    file.save(path);
    return path;
  };
  const std::string plain = save(GetParam().model(), "plain");
  const std::vector<float> theirs_plain = LlamaReference(plain, 128, 1).logits(tokens);
  const double rounding = apart(our_logits(plain, tokens), theirs_plain);
  const double size = apart(theirs_plain, std::vector<float>(theirs_plain.size()));
  std::printf("  %s: logits of size %.3f, apart by %.5f\n", GetParam().name().c_str(), size, rounding);
  EXPECT_LT(rounding, most_rounding(size));
  // A few rows at a time the CPU multiplies in float32 what is float32 in the file.
  EXPECT_LT(apart(our_logits(plain, tokens, "cpu", 7), theirs_plain), 2 * rounding);
  if (has_cuda_device()) {
    // K and V are two of the 18 that it rounds in a layer: seven matrices, what these are multiplied with, queries and
    // the weights of softmax. Independent roundings of one size make three times the distance. Hybrids have K and V in
    // some layers only, the others in all: of them what K and V of all layers would be at most.
    const double of_cache = find_family(GetParam().architecture)->hybrid ? most_rounding(size) : rounding;
    for (const size_t chunk : {7, 40}) {
      const double apart_there = apart(our_logits(plain, tokens, "cuda", chunk), theirs_plain);
      std::printf("    %-26s apart by %.5f\n", ("cuda, chunks of " + std::to_string(chunk)).c_str(), apart_there);
      EXPECT_LT(apart_there, 2 * 3 * of_cache);
    }
  }

  for (const Change& change : kChanges) {
    SCOPED_TRACE(change.name);
    if (change.needs && !change.needs(*find_family(GetParam().architecture))) continue;
    GgufWriter file = GetParam().model();
    change.apply(file, prefix);
    const std::string path = save(file, change.name);
    const std::vector<float> theirs = LlamaReference(path, 128, 1).logits(tokens);
    const double distance = apart(our_logits(path, tokens), theirs), effect = apart(theirs, theirs_plain);
    std::printf("    %-26s apart by %.5f, moved by %.5f\n", change.name, distance, effect);
    EXPECT_LT(distance, 2 * rounding);
    EXPECT_GT(effect, 4 * rounding) << "the change is too small to be seen";
  }
}

/// Files whose tensors are not those that the family's files usually have.
struct OtherTensors {
  const char* name;
  std::function<void(GgufWriter&)> apply;
  bool moves = true;                   ///< the logits, compared with the usual tensors
  std::vector<std::string> only = {};  ///< families in which libllama does so; empty: all
  bool biases = false;                 ///< of q, k and v
};

/// The tensors `blk.N.PART` of every layer become one behind the other `blk.N.NAME`.
void fuse(GgufWriter& file, const std::vector<std::string>& parts, const std::string& name) {
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    test::Bytes data;
    std::vector<uint64_t> sizes;
    for (const std::string& part : parts) {
      const GgufWriter::Tensor tensor = file.tensor(layer + part);
      data.insert(data.end(), tensor.data.begin(), tensor.data.end());
      const uint64_t rows = sizes.empty() ? 0 : sizes.back();
      sizes = tensor.sizes;
      sizes.back() += rows;
      file.erase_tensor(layer + part);
    }
    file.add(layer + name, GGML_TYPE_F32, sizes).data = data;
  }
}

void add_biases(GgufWriter& file) {
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    for (const std::string name : {"attn_q", "attn_k", "attn_v"}) {
      std::vector<float> values(file.tensor(layer + name + ".weight").sizes[1]);
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(std::sin(static_cast<double>(i)));
      file.add(layer + name + ".bias", values, {values.size()});
    }
  }
}

const OtherTensors kOtherTensors[] = {
    {"second scales of attention",
     [](GgufWriter& file) {
       file.add("blk.0.attn_q.scale", {1.5f}, {1});
       file.add("blk.0.attn_k.scale", {0.5f}, {1});
       file.add("blk.1.attn_v.scale", {-2.0f}, {1});
       file.add("blk.1.attn_output.scale", {0.75f}, {1});
       file.add("blk.1.attn_output.input_scale", {5.0f}, {1});
     }},
    // libllama reads these in other files, too, but its graphs leave them out.
    {"second scales of the MLP",
     [](GgufWriter& file) {
       file.add("blk.0.ffn_gate.scale", {1.5f}, {1});
       file.add("blk.0.ffn_up.scale", {0.5f}, {1});
       file.add("blk.1.ffn_down.scale", {-2.0f}, {1});
     },
     true,
     {"llama", "qwen3", "mistral3"}},
    {"scales of experts",
     [](GgufWriter& file) {
       const auto count = static_cast<size_t>(file.tensor("blk.0.ffn_gate_exps.weight").sizes[2]);
       std::vector<float> scales(count);
       for (size_t i = 0; i < count; ++i) scales[i] = 0.5f + static_cast<float>(i % 3);
       for (const char* name : {"blk.0.ffn_gate_exps", "blk.0.ffn_up_exps", "blk.1.ffn_down_exps"}) {
         file.add(name + std::string(".scale"), scales, {count});
         file.add(name + std::string(".input_scale"), scales, {count});
       }
     },
     true,
     {"llama_experts", "qwen3moe_experts", "mistral3_experts"}},
    {"biases of q, k and v", add_biases, true, {}, true},
    {"fused q, k and v",
     [](GgufWriter& file) {
       fuse(file, {"attn_q.weight", "attn_k.weight", "attn_v.weight"}, "attn_qkv.weight");
     },
     false},
    {"fused with biases and a scale",
     [](GgufWriter& file) {
       add_biases(file);
       fuse(file, {"attn_q.weight", "attn_k.weight", "attn_v.weight"}, "attn_qkv.weight");
       fuse(file, {"attn_q.bias", "attn_k.bias", "attn_v.bias"}, "attn_qkv.bias");
       file.add("blk.0.attn_qkv.scale", {1.25f}, {1});
     },
     true,
     {},
     true},
    {"fused with biases apart",
     [](GgufWriter& file) {
       add_biases(file);
       fuse(file, {"attn_q.weight", "attn_k.weight", "attn_v.weight"}, "attn_qkv.weight");
     },
     true,
     {},
     true},
};

TEST_P(Architectures, OtherTensorsAreReadAsLlamaDoes) {
  if (find_family(GetParam().architecture)->hybrid) GTEST_SKIP() << "of hybrids hybrids_test.cpp has them";
  const test::TemporaryFolder folder;
  const std::vector<Token> tokens = some_tokens();
  GgufWriter usual = GetParam().model();
  if (std::string(GetParam().architecture).starts_with("qwen2") || std::string(GetParam().architecture) == "seed_oss" ||
      std::string(GetParam().architecture) == "gpt-oss") {  // their files may be without biases, too
    for (const std::string layer : {"blk.0.", "blk.1."}) {
      for (const char* name : {"attn_q.bias", "attn_k.bias", "attn_v.bias"}) usual.erase_tensor(layer + name);
    }
  }
  const auto save = [&](const GgufWriter& file, const char* name) {
    const std::string path = folder.file(std::string(name) + ".gguf");
    file.save(path);
    return path;
  };
  const std::string plain = save(usual, "plain");
  const std::vector<float> theirs_plain = LlamaReference(plain, 128, 1).logits(tokens);
  const double rounding = apart(our_logits(plain, tokens), theirs_plain);
  const double size = apart(theirs_plain, std::vector<float>(theirs_plain.size()));
  EXPECT_LT(rounding, most_rounding(size));
  for (const OtherTensors& other : kOtherTensors) {
    SCOPED_TRACE(other.name);
    if (!other.only.empty() && std::find(other.only.begin(), other.only.end(), GetParam().name()) == other.only.end()) {
      continue;
    }
    if (other.biases && find_family(GetParam().architecture)->scales) continue;  // they would need the scales, too
    GgufWriter file = usual;
    other.apply(file);
    const std::string path = save(file, other.name);
    const std::vector<float> theirs = LlamaReference(path, 128, 1).logits(tokens);
    const double distance = apart(our_logits(path, tokens), theirs), effect = apart(theirs, theirs_plain);
    std::printf("    %-30s apart by %.5f, moved by %.5f\n", other.name, distance, effect);
    EXPECT_LT(distance, 2 * rounding);
    if (other.moves) {
      EXPECT_GT(effect, 4 * rounding) << "the change is too small to be seen";
    } else {
      EXPECT_LT(effect, rounding);
    }
  }
}

/// Every row of the matrices of a model whose sizes suit all types, in one type.
GgufWriter model_of(const std::string& architecture, ggml_type type) {
  GgufWriter file =
      test::small_model(architecture, {.layers = 2, .width = 256, .heads = 4, .kv_heads = 2, .ffn = 512, .vocab = 32});
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) {
      const GgufWriter::Tensor from = file.tensor(layer + name + ".weight");
      auto& to = file.add(from.name, type, from.sizes);
      const std::vector<float> importance(from.sizes[0], 1.0f);
      ggml_quantize_chunk(type, reinterpret_cast<const float*>(from.data.data()), to.data.data(), 0,
                          static_cast<int64_t>(from.sizes[1]), static_cast<int64_t>(from.sizes[0]), importance.data());
    }
    file.add(layer + "ffn_down.scale", {0.5f}, {1});
  }
  return file;
}

// libllama rounds activations to 8 bits for all these types. How far that moves the logits shows Q4_0, of which much
// else is tested; codes read in another order, or another scale, would move them by their own size.
TEST(Types, NewOnesGiveLlamasLogits) {
  const test::TemporaryFolder folder;
  const std::vector<Token> tokens = some_tokens();
  const auto apart_by = [&](ggml_type type) {
    const std::string path = folder.file(std::string(ggml_type_name(type)) + ".gguf");
    model_of("llama", type).save(path);
    const std::vector<float> theirs = LlamaReference(path, 128, 1).logits(tokens);
    const double apart = deviation(our_logits(path, tokens), theirs);
    const double size = deviation(theirs, std::vector<float>(theirs.size()));
    std::printf("    %-6s logits of size %.3f, apart by %.5f\n", ggml_type_name(type), size, apart);
    return apart / size;
  };
  const double rounding = apart_by(GGML_TYPE_Q4_0);
  EXPECT_LT(rounding, 0.1);
  for (const ggml_type type : {GGML_TYPE_MXFP4, GGML_TYPE_NVFP4, GGML_TYPE_Q1_0, GGML_TYPE_Q2_0}) {
    EXPECT_LT(apart_by(type), 2 * rounding) << ggml_type_name(type);
  }
}

// libllama tells the largest Gemma 3 by its depth.
TEST(Gemma3, TheLargestScoresByWidthOverHeads) {
  const test::TemporaryFolder folder;
  const std::string path = folder.file("largest.gguf");
  test::small_model("gemma3", {.layers = 62, .heads = 2, .kv_heads = 1, .ffn = 16, .head_size = 16}).save(path);
  const std::vector<Token> tokens = some_tokens();
  const std::vector<float> theirs = LlamaReference(path, 128, 1).logits(tokens);
  const double size = deviation(theirs, std::vector<float>(theirs.size()));
  const double apart = deviation(our_logits(path, tokens), theirs);
  const auto backend = make_backend("reference", 1);
  Model unscaled = load_model(path, *backend);
  unscaled.hp.query_scale = 1;
  const double effect = deviation(logits_of(unscaled, *backend, tokens, kTokens), theirs);
  std::printf("    logits of size %.3f, apart by %.5f, without the scale by %.5f\n", size, apart, effect);
  EXPECT_LT(apart, size / 128 * std::sqrt(62.0 / 2));
  EXPECT_GT(effect, 4 * apart);
}

INSTANTIATE_TEST_SUITE_P(All, Architectures,
                         testing::Values(Kind{"llama"}, Kind{"qwen2"}, Kind{"qwen3"}, Kind{"llama", 4},
                                         Kind{"qwen2moe", 5}, Kind{"qwen3moe", 8}, Kind{"olmoe", 6}, Kind{"olmo2"},
                                         Kind{"smollm3", 0, 4}, Kind{"seed_oss"}, Kind{"phi3"}, Kind{"glm4"},
                                         Kind{"granite"}, Kind{"gemma3"}, Kind{"gpt-oss", 5}, Kind{"granitemoe", 4},
                                         Kind{"mistral3"}, Kind{"mistral3", 4}, Kind{"qwen35"}, Kind{"qwen35moe", 8},
                                         Kind{"qwen3next", 8}),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace tidal::golden
