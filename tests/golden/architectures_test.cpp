// Small random models of every architecture and RoPE scaling: our logits are llama.cpp's, so every key and tensor of
// the file is read as llama.cpp reads it.
#include <cmath>
#include <functional>

#include "golden/architectures.h"
#include "model/family.h"
#include "model/gguf.h"
#include "model/load.h"
#include "support/small_gemma4.h"

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
bool needs_no_window(const Family& family) {
  return has_windows(family) && family.architecture != "gpt-oss" && family.usual_window == 0;
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
       file.set_raw(prefix + "attention.sliding_window_pattern", GGUF_TYPE_ARRAY, test::list_of({false, true}));
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
    {"other cap of scores",
     [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "attn_logit_softcapping", 0.5f); },
     [](const Family& family) { return family.usual_score_cap > 0; }},
    {"usual cap of scores",
     [](GgufWriter& file, const std::string& prefix) { file.erase(prefix + "attn_logit_softcapping"); },
     [](const Family& family) { return family.usual_score_cap > 0; }},
    {"capped logits",
     [](GgufWriter& file, const std::string& prefix) { file.set(prefix + "final_logit_softcapping", 2.0f); },
     [](const Family& family) { return family.logit_cap; }},
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
  const auto runs_there = [&] {
    return make_backend("cuda", 1)->unsupported(read_hyperparameters(GgufFile::open(plain))).empty();
  };
  if (has_cuda_device() && runs_there()) {
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

INSTANTIATE_TEST_SUITE_P(All, Architectures, testing::ValuesIn(kKinds),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace tidal::golden
