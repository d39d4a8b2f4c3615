// Writes the fuzzer's first inputs: gguf_seeds FOLDER. Small sound models, so that mutations reach what comes late.
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "support/gguf_writer.h"

using tidal::test::GgufWriter;

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
    writer.add("rope_freqs.weight", std::vector<float>(8, 2.0f), {8});
    writer.add("output.weight", GGML_TYPE_F16, {16, 4});
    writer.save(folder / (architecture + "-more.gguf"));

    writer = GgufWriter();  // a header alone: quick to run
    writer.version = 2;
    writer.set("general.architecture", architecture.c_str()).set(prefix + "block_count", 1u);
    writer.save(folder / (architecture + "-keys.gguf"));
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "gguf_seeds: %s\n", error.what());
  return 1;
}
