// Writes the fuzzer's first inputs: gguf_seeds FOLDER. Small sound models, so that mutations reach what comes late.
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "fuzz/next_part.h"
#include "support/gguf_writer.h"
#include "support/small_gemma4.h"

using tidal::test::GgufWriter;

namespace {

void save_parts(const std::vector<GgufWriter>& parts, const std::filesystem::path& path) {
  std::ofstream file(path, std::ios::binary);
  for (const GgufWriter& part : parts) {
    if (&part != parts.data()) file << tidal::test::kNextPart;
    const tidal::test::Bytes bytes = part.bytes();
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
}

/// Fused matrices, second scales, and types that came last.
GgufWriter new_kinds(const std::string& architecture) {
  // As small as the blocks of all types allow: the fuzzer takes 32 KiB.
  const tidal::test::SmallShape shape{.layers = 1, .width = 128, .heads = 1, .kv_heads = 1, .ffn = 64, .vocab = 4};
  GgufWriter writer = tidal::test::small_model(architecture, shape);
  for (const char* part : {"attn_q", "attn_k", "attn_v"}) writer.erase_tensor(std::string("blk.0.") + part + ".weight");
  writer.erase_tensor("blk.0.ffn_gate.weight");
  writer.add("blk.0.attn_qkv.weight", GGML_TYPE_Q1_0, {128, 384});
  writer.add("blk.0.attn_output.weight", GGML_TYPE_NVFP4, {128, 128});
  writer.add("blk.0.attn_output.scale", {0.5f}, {1});
  writer.add("blk.0.attn_output.input_scale", {0.5f}, {1});
  writer.add("blk.0.ffn_up.weight", GGML_TYPE_Q2_0, {128, 128});
  writer.add("blk.0.ffn_down.weight", GGML_TYPE_MXFP4, {64, 128});
  writer.add("token_embd.weight", GGML_TYPE_Q1_0, {128, 4});
  return writer;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::fprintf(stderr, "usage: gguf_seeds FOLDER\n");
    return 1;
  }
  const std::filesystem::path folder = argv[1];
  std::filesystem::create_directories(folder);
  const tidal::test::SmallShape shape{.layers = 1, .width = 16, .heads = 1, .kv_heads = 1, .ffn = 16, .vocab = 4};
  for (const std::string architecture : {"llama", "qwen2", "qwen3"}) {
    const std::string prefix = architecture + ".";
    GgufWriter writer = tidal::test::small_model(architecture, shape);
    writer.save(folder / (architecture + ".gguf"));

    writer.set(prefix + "rope.scaling.type", "yarn").set(prefix + "rope.scaling.factor", 4.0f);
    writer.set(prefix + "rope.scaling.original_context_length", 32u).set(prefix + "rope.scaling.yarn_beta_fast", 16.0f);
    writer.set(prefix + "attention.head_count_kv", std::vector<uint32_t>{1}).set("general.alignment", 64u);
    if (architecture == "llama") writer.add("rope_freqs.weight", std::vector<float>(8, 2.0f), {8});
    writer.add("output.weight", GGML_TYPE_F16, {16, 4});
    writer.save(folder / (architecture + "-more.gguf"));

    save_parts(tidal::test::small_model(architecture, shape).split(3), folder / (architecture + "-parts.gguf"));
    writer = tidal::test::small_model(architecture, shape);
    writer.set("general.alignment", 64u);
    save_parts(writer.split(2, true), folder / (architecture + "-aligned-parts.gguf"));
    new_kinds(architecture).save(folder / (architecture + "-new.gguf"));

    writer = GgufWriter();  // a header alone: quick to run
    writer.version = 2;
    writer.set("general.architecture", architecture.c_str()).set(prefix + "block_count", 1u);
    writer.save(folder / (architecture + "-keys.gguf"));
  }
  for (const std::string architecture : {"llama", "qwen2moe", "qwen3moe", "olmoe", "gpt-oss"}) {
    tidal::test::SmallShape mixture = shape;
    mixture.experts = 2;
    mixture.experts_used = 1;
    mixture.expert_ffn = mixture.shared_ffn = 16;
    tidal::test::small_model(architecture, mixture).save(folder / (architecture + "-experts.gguf"));
  }
  for (const std::string architecture :
       {"olmo2", "smollm3", "seed_oss", "phi3", "glm4", "granite", "mistral3", "gemma2", "gemma3"}) {
    tidal::test::small_model(architecture, shape).save(folder / (architecture + ".gguf"));
  }
  using tidal::test::small_gemma4;
  tidal::test::SmallGemma4 gemma{.width = 16, .heads = 1, .ffn = 16, .vocab = 4, .window_heads = 1};
  gemma.whole_dim = 16;
  small_gemma4(gemma).save(folder / "gemma4.gguf");
  tidal::test::SmallGemma4 mixture = gemma;
  mixture.experts = 2;
  mixture.experts_used = 1;
  mixture.expert_ffn = 16;
  small_gemma4(mixture).save(folder / "gemma4-experts.gguf");
  gemma.layers = 4;
  gemma.width = 8;
  gemma.shared_kv = 2;
  gemma.layer_input = 2;
  gemma.double_wide = true;
  gemma.keys_as_values = false;
  small_gemma4(gemma).save(folder / "gemma4-inputs.gguf");
  for (const std::string architecture : {"qwen35", "qwen35moe", "qwen3next"}) {
    tidal::test::SmallShape hybrid = shape;
    hybrid.layers = 2;
    hybrid.experts_used = 1;
    hybrid.expert_ffn = hybrid.shared_ffn = 16;
    hybrid.delta_dim = 4;
    GgufWriter writer = tidal::test::small_model(architecture, hybrid);
    writer.save(folder / (architecture + ".gguf"));
    writer.set(architecture + ".block_count", 3u).set(architecture + ".nextn_predict_layers", 1u);
    writer.set(architecture + ".attention.recurrent_layers", std::vector<uint32_t>{1, 0, 0});
    writer.add("blk.2.nextn.enorm.weight", std::vector<float>(16, 1.0f), {16});
    writer.save(folder / (architecture + "-more.gguf"));
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "gguf_seeds: %s\n", error.what());
  return 1;
}
