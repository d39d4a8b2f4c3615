// Small random Gemma 4 models in all their forms: our logits are llama.cpp's, whatever keys and tensors say, and
// however a text comes to the engine.
#include <algorithm>
#include <cmath>
#include <functional>

#include "golden/engine_logits.h"
#include "golden/llama_reference.h"
#include "support/loading.h"
#include "support/small_gemma4.h"

namespace tidal::golden {
namespace {

using test::GgufWriter;
using test::SmallGemma4;

struct Form {
  const char* name;
  SmallGemma4 shape;
};

const Form kForms[] = {
    {"dense", {}},
    {"experts", {.experts = 6}},
    {"experts_apart", {.experts = 6, .fused = false}},
    {"inputs", {.whole_heads = 2, .keys_as_values = false, .layer_input = 16}},
    {"shared", {.layers = 6, .keys_as_values = false, .shared_kv = 2, .double_wide = true, .layer_input = 16}},
};

class Gemma4 : public testing::TestWithParam<Form> {
 protected:
  static const SmallGemma4& shape() { return GetParam().shape; }
  /// Of logits of this size: a few times bf16's half unit, 2^-9, for two layers, whose roundings are independent.
  static double most_rounding(double size) { return size / 128 * std::sqrt(static_cast<double>(shape().layers) / 2); }
  /// How far two runs' logits are apart; of mixtures what three quarters of the tokens are at least, since others go
  /// through another expert that the router finds about as good.
  static double apart(std::span<const float> a, std::span<const float> b) {
    if (shape().experts == 0) return deviation(a, b);
    std::vector<double> tokens;
    const size_t vocab = a.size() / kTokens;
    for (size_t i = 0; i < a.size(); i += vocab) tokens.push_back(deviation(a.subspan(i, vocab), b.subspan(i, vocab)));
    std::nth_element(tokens.begin(), tokens.begin() + kTokens / 4, tokens.end());
    return tokens[kTokens / 4];
  }
  static std::vector<size_t> device_chunks() {
    return has_cuda_device() ? std::vector<size_t>{1, 7, 40, kTokens} : std::vector<size_t>{};
  }
  static double size_of(const std::vector<float>& logits) { return apart(logits, std::vector<float>(logits.size())); }

  std::string save(const GgufWriter& file, const std::string& name) const {
    const std::string path = folder_.file(name + ".gguf");
    file.save(path);
    return path;
  }

  test::TemporaryFolder folder_;
  std::vector<Token> tokens_ = some_tokens();
};

TEST_P(Gemma4, LogitsAreLlamas) {
  const std::string path = save(small_gemma4(shape()), "plain");
  const std::vector<float> theirs = LlamaReference(path, 128, 1).logits(tokens_);
  const double rounding = apart(our_logits(path, tokens_), theirs), size = size_of(theirs);
  std::printf("  %s: logits of size %.3f, apart by %.5f\n", GetParam().name, size, rounding);
  EXPECT_LT(rounding, most_rounding(size));
  // A few rows at a time the CPU multiplies in float32 what is float32 in the file. More are multiplied in bf16: K and
  // V are two of the 18 roundings in a layer then, and independent ones of one size make three times the distance.
  for (const auto& [chunk, factor] : {std::pair<size_t, int>{1, 1}, {7, 1}, {40, 3}, {kTokens, 3}}) {
    const double distance = apart(our_logits(path, tokens_, "cpu", chunk), theirs);
    std::printf("    cpu, chunks of %-3zu apart by %.5f\n", chunk, distance);
    EXPECT_LT(distance, 2 * factor * most_rounding(size)) << "chunks of " << chunk;
  }
  // A device multiplies in bf16 however many rows there are.
  for (const size_t chunk : device_chunks()) {
    const double distance = apart(our_logits(path, tokens_, "cuda", chunk), theirs);
    std::printf("    cuda, chunks of %-3zu apart by %.5f\n", chunk, distance);
    EXPECT_LT(distance, 2 * 3 * most_rounding(size)) << "chunks of " << chunk;
  }
}

// libllama rounds activations to 8 bits for these types, as we do. Of Q8_0's half unit, 1/254 of the largest in a block
// of 32, about a third of which is the usual size, a layer's dozen products make what float32 files have of bf16.
TEST_P(Gemma4, QuantisedLogitsAreLlamas) {
  SmallGemma4 large = shape();
  large.width = large.ffn = 256;
  large.window_dim = 64;
  large.whole_dim = 128;
  if (large.experts > 0) large.expert_ffn = 256;
  if (large.layer_input > 0) large.layer_input = 32;
  const std::string path = save(quantised(small_gemma4(large), large), "quantised");
  const std::vector<float> theirs = LlamaReference(path, 128, 1).logits(tokens_);
  const double size = size_of(theirs);
  for (const size_t chunk : {size_t{7}, size_t{kTokens}}) {
    const double distance = apart(our_logits(path, tokens_, "cpu", chunk), theirs);
    std::printf("    %s, quantised, chunks of %-3zu: logits of size %.3f, apart by %.5f\n", GetParam().name, chunk,
                size, distance);
    EXPECT_LT(distance, 2 * 3 * most_rounding(size)) << "chunks of " << chunk;
  }
  for (const size_t chunk : device_chunks()) {
    const double distance = apart(our_logits(path, tokens_, "cuda", chunk), theirs);
    std::printf("    %s, quantised, cuda, chunks of %-3zu: apart by %.5f\n", GetParam().name, chunk, distance);
    EXPECT_LT(distance, 2 * 3 * most_rounding(size)) << "chunks of " << chunk;
  }
}

struct Change {
  const char* name;
  std::function<void(GgufWriter&)> apply;
  bool moves = true;                                        ///< the logits
  std::function<bool(const SmallGemma4&)> needs = nullptr;  ///< what a form must have for it
};

bool has_experts(const SmallGemma4& shape) { return shape.experts > 0; }

bool has_experts_apart(const SmallGemma4& shape) { return shape.experts > 0 && !shape.fused; }
bool has_keys_as_values(const SmallGemma4& shape) { return shape.keys_as_values; }
bool shares(const SmallGemma4& shape) { return shape.shared_kv > 0; }

void add_matrix(GgufWriter& file, const std::string& name, uint64_t rows, uint64_t cols) {
  std::vector<float> values(rows * cols);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = 0.2f * static_cast<float>(std::sin(static_cast<double>(i * i)));
  file.add(name, values, {cols, rows});
}

void fuse_qkv(GgufWriter& file) {
  test::Bytes data;
  uint64_t rows = 0, cols = 0;
  for (const char* part : {"attn_q", "attn_k", "attn_v"}) {
    const GgufWriter::Tensor tensor = file.tensor("blk.0." + std::string(part) + ".weight");
    data.insert(data.end(), tensor.data.begin(), tensor.data.end());
    cols = tensor.sizes[0];
    rows += tensor.sizes[1];
    file.erase_tensor(tensor.name);
  }
  file.add("blk.0.attn_qkv.weight", GGML_TYPE_F32, {cols, rows}).data = data;
}

const Change kChanges[] = {
    {"base", [](GgufWriter& file) { file.set("gemma4.rope.freq_base", 300.0f); }},
    {"base of windows", [](GgufWriter& file) { file.set("gemma4.rope.freq_base_swa", 50.0f); }},
    {"usual base of windows", [](GgufWriter& file) { file.erase("gemma4.rope.freq_base_swa"); }},
    {"window", [](GgufWriter& file) { file.set("gemma4.attention.sliding_window", 12u); }},
    {"linear scaling", [](GgufWriter& file) { file.set("gemma4.rope.scaling.factor", 4.0f); }},
    {"yarn",
     [](GgufWriter& file) {
       file.set("gemma4.rope.scaling.type", "yarn").set("gemma4.rope.scaling.factor", 4.0f);
       file.set("gemma4.rope.scaling.original_context_length", 32u);
     }},
    {"all pairs rotate",
     [](GgufWriter& file) {
       const GgufWriter::Tensor before = file.tensor("rope_freqs.weight");
       file.add(before.name, std::vector<float>(before.sizes[0], 1.0f), before.sizes);
     }},
    {"fewer elements of windows rotate", [](GgufWriter& file) { file.set("gemma4.rope.dimension_count_swa", 8u); }},
    {"no cap", [](GgufWriter& file) { file.set("gemma4.final_logit_softcapping", 0.0f); }},
    {"usual cap", [](GgufWriter& file) { file.erase("gemma4.final_logit_softcapping"); }},
    {"epsilon", [](GgufWriter& file) { file.set("gemma4.attention.layer_norm_rms_epsilon", 0.5f); }},
    {"no output scale", [](GgufWriter& file) { file.erase_tensor("blk.0.layer_output_scale.weight"); }},
    {"an output matrix", [](GgufWriter& file) { add_matrix(file, "output.weight", 32, 64); }},
    {"values of their own", [](GgufWriter& file) { add_matrix(file, "blk.1.attn_v.weight", 32, 64); }, true,
     has_keys_as_values},
    {"fused q, k and v", fuse_qkv, false},
    {"second scales",
     [](GgufWriter& file) {
       file.add("blk.0.ffn_gate.scale", {1.5f}, {1});
       file.add("blk.1.ffn_up.scale", {0.5f}, {1});
     }},
    {"no scales of experts",
     [](GgufWriter& file) {
       for (const char* layer : {"blk.0.", "blk.1."}) file.erase_tensor(layer + std::string("ffn_down_exps.scale"));
     },
     true, has_experts},
    {"scales of gate and up",
     [](GgufWriter& file) {
       file.add("blk.0.ffn_gate_exps.scale", {0.5f, 1, 2, 0.5f, 1, 2}, {6});
       file.add("blk.1.ffn_up_exps.scale", {2, 1, 2, 0.5f, 1, 2}, {6});
     },
     true, has_experts_apart},
    {"one expert", [](GgufWriter& file) { file.set("gemma4.expert_used_count", 1u); }, true, has_experts},
    {"tensors of sharing layers",
     [](GgufWriter& file) {
       add_matrix(file, "blk.4.attn_k.weight", 32, 64);
       add_matrix(file, "blk.4.attn_v.weight", 32, 64);
       file.add("blk.4.attn_k_norm.weight", std::vector<float>(16, 3.0f), {16});
     },
     false, shares},
};

TEST_P(Gemma4, ChangesAreLlamas) {
  const GgufWriter usual = small_gemma4(shape());
  const std::string plain = save(usual, "plain");
  const std::vector<float> theirs_plain = LlamaReference(plain, 128, 1).logits(tokens_);
  const double rounding = apart(our_logits(plain, tokens_), theirs_plain);
  for (const Change& change : kChanges) {
    SCOPED_TRACE(change.name);
    if (change.needs && !change.needs(shape())) continue;
    GgufWriter file = usual;
    change.apply(file);
    const std::string path = save(file, change.name);
    const std::vector<float> theirs = LlamaReference(path, 128, 1).logits(tokens_);
    const double distance = apart(our_logits(path, tokens_), theirs), effect = apart(theirs, theirs_plain);
    const double grown = std::max(1.0, size_of(theirs) / size_of(theirs_plain));  // a cap shrinks what is apart, too
    std::printf("    %-34s apart by %.5f, moved by %.5f\n", change.name, distance, effect);
    EXPECT_LT(distance, 2 * grown * rounding);
    if (change.moves) {
      EXPECT_GT(effect, 4 * rounding) << "the change is too small to be seen";
    } else {
      EXPECT_LT(effect, rounding);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, Gemma4, testing::ValuesIn(kForms),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tidal::golden
